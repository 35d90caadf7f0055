"""What the machine can do, and what each kernel makes of it. Only `smoe bench` imports it."""
