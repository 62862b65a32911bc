"""A trained model on raw recordings and streams: it labels them, and learns from them."""
