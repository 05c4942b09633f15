"""`maquette web`: reconstruction and generation for many people in a browser.

Jobs, their queue and their limits are plain Python here (`jobs`, `scheduler`, `worker`, `limits`); gradio is imported
by `page` alone, and only when the page is served.
"""
