"""Which channels live and die together: `Graph` -> `Groups`."""

from secateurs.couple.couple import couple
from secateurs.couple.group import ChannelGroup, Groups, Member

__all__ = ["ChannelGroup", "Groups", "Member", "couple"]
