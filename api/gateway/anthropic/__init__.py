"""Anthropic's Messages API and OpenAI's chat completions, each said in the words of the other."""

from api.gateway.anthropic.conversions import ChatToMessages, CountTokensToChat, MessagesToChat
from api.gateway.anthropic.errors import anthropic_error, anthropic_error_event

__all__ = ["ChatToMessages", "CountTokensToChat", "MessagesToChat", "anthropic_error", "anthropic_error_event"]
