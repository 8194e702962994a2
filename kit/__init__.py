"""lora-kit: teach a chat model new text without losing the chat, on one GPU."""

from __future__ import annotations

__version__ = "0.1.0"
