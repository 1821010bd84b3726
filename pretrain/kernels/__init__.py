"""Triton kernels, each beside the torch operation that it stands for and is tested equal to.

Nothing here imports triton before a kernel is asked for: it comes with CUDA builds of torch only.
Under ``TRITON_INTERPRET=1`` the kernels run on the CPU, slowly.
"""
