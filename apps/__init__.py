"""The doors: command line, report, rendering of videos. No maths here."""
