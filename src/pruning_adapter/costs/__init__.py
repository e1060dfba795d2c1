"""What a model costs: counted operations, bytes, and time measured on this device."""
