"""HTTP: who may come, what is answered, and the page in a browser.

browser.py  Chromium without a screen
metric_table.py the table of metrics in docs/web.md
looks.js    what a test asks the page, in the page
pictures.py the pictures of docs/web.md
senseless.py what makes no sense to ask, and what is not so
pages.py    a gateway with [admin], as a program, and programs that ask it
"""
