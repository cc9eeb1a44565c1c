"""What the page is made of besides its layout (app.py): its state, its style sheet, its script."""
