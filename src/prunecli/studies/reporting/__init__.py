"""Pages about networks: what is known of them in files, and what is measured for the page."""
