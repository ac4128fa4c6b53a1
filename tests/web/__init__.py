"""HTTP: who may come, what is answered, and the page in a browser.

browser.py  Chromium without a screen
pages.py    a gateway with [admin], as a program, and programs that ask it
"""
