"""HTTP: who may come, what is answered, and the page in a browser.

browser.py  Chromium without a screen
looks.js    what a test asks the page, in the page
pictures.py the pictures of docs/web.md
pages.py    a gateway with [admin], as a program, and programs that ask it
"""
