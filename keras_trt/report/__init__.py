"""What runs and how it came to be (`report`); layer by layer (`measure`, `layers`), also as a page (`html`)."""
