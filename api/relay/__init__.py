"""The one TLS port that hosts dial: filtered Temporal calls, what hosts say, and tunnels to them."""
