"""A local server that behaves like the Maesn accounting API and fails on request."""

from lamella.maesn.sandbox.records import Odd
from lamella.maesn.sandbox.replies import Reply
from lamella.maesn.sandbox.requests import Received, Step
from lamella.maesn.sandbox.server import Account, AccountState, Sandbox

__all__ = ["Account", "AccountState", "Odd", "Received", "Reply", "Sandbox", "Step"]
