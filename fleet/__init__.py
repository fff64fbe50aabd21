"""The domain, used by all and knowing none of them."""
