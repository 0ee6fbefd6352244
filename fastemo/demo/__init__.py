"""`fastemo demo`: a trained model on a page in the browser."""
