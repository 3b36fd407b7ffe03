"""Repositories of the Hugging Face hub: their addresses, their listings, and their files in the cache or a folder.

Everything that talks to the hub goes through huggingface_hub, which honours HF_TOKEN, HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE. What is ours: the commit is settled first, what we never open is left out, the room on the disk
is looked at before, every byte is hashed after, and one process of a file system downloads while others wait.
"""

from nemo_sdg.hub.address import Address, is_address

__all__ = ["Address", "is_address"]
