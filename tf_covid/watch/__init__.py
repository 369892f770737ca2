"""A watch over archives, senders and folders: every new chest CT is answered once."""
