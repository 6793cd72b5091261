"""Implementations of the gradient transforms, one module each; all agree with ``reference``.

A backend consists of functions on gradients that are dense, real and on one device:

- ``znorm_(gradients, eps, grad_scale, center)`` and ``centralize_(gradients, grad_scale)`` edit them in place and
  return their statistics before the edit as a tensor of shape ``(3, len(gradients))``: mean, standard deviation and the
  cosine between the gradient before and after;
- ``measure(gradients)`` and ``apply_(gradients, mean, factor)`` are the two steps of ``znorm_``: the first edits
  nothing, and :func:`.moments.compute_edit` computes mean and factor of the second from the moments;
- ``norm(gradients, norm_type)`` of all gradients together and ``scale_(gradients, factor)`` are the two steps of
  clipping.

:func:`.choice.choose` returns the backend of a device. :mod:`.describing` compares gradients before and after a
transform by the moments that it measures.
"""
