"""Pictures made larger by Real-ESRGAN, in ncnn on the CPU: animevideov3 for anything, x4plus for photographs.

    backend    which network, how large, progress        tiles      how a picture is cut and put together
    network    one network of ncnn

The worker's host loads it in a child process; a network is read when it is first asked for.
"""

from inferhub.backends.realesrgan.backend import RealEsrgan

BACKEND = RealEsrgan
