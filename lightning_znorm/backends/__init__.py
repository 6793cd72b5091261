"""Ways to transform a list of gradients in place, one module each; all agree with ``reference``.

Every backend has a function ``znorm_(gradients, eps, grad_scale) -> Tensor``. It edits the gradients (dense, real, on
one device) in place and returns their statistics before the edit as a tensor of shape ``(3, len(gradients))``: mean,
standard deviation and the cosine between the gradient before and after.
"""
