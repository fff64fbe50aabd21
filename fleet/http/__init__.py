"""HTTP/1.1 towards engines and hosts, for those that count microseconds: the gateways, and the proxy of a host."""
