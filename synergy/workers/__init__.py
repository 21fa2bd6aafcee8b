"""Programs that stages run inside a framework's environment. The driver starts them; it never imports them."""
