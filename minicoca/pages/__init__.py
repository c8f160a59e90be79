"""What a browser shows: files that open without a server or a network."""
