"""What happens to the gradients of one optimizer step, whoever makes it."""
