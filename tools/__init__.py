"""Programs beside main.py: python -m tools.<name>. Nothing imports them."""
