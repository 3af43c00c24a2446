"""paramiko's connection, whose channels several threads may use.

Who answers that a channel is closed while another thread is about to say something of it makes the server end the whole
connection (OpenSSH: `for nonexistent channel`, dropbear: `Unknown channel`), or take it for the next channel's. So
whoever uses a channel answers, once done with it.

dropbear (2022.83) may take the end of one channel's program for that of one that is being opened: there, one at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, cast

import paramiko
from paramiko.common import MSG_CHANNEL_CLOSE, cMSG_CHANNEL_CLOSE

_PATIENCE = 5
"""Seconds that a server may take to close a channel whose program has ended."""


class Transport(paramiko.Transport):
    """A connection. Channels of `session` are to be given back by `finish`."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self._sessions: dict[paramiko.Channel, threading.Event] = {}
        self._turn = threading.RLock()
        # None of this is paramiko's public face, which has no other way: see its `Transport.run`.
        self._parts = cast(Any, self)
        self._parts._channel_handler_table = {**self._parts._channel_handler_table, MSG_CHANNEL_CLOSE: self._closed}

    @property
    def turn(self) -> contextlib.AbstractContextManager[object]:
        """To be held while a program is started or ends."""
        return self._turn if "dropbear" in self.remote_version else contextlib.nullcontext()

    def session(self, timeout: float) -> paramiko.Channel:
        """A new channel. SSHException if there is none."""
        channel = self.open_session(timeout=timeout)
        self._sessions[channel] = threading.Event()
        return channel

    def finish(self, channel: paramiko.Channel) -> None:
        """Close a channel of `session` whose program has ended, and that nobody uses any more."""
        over = self._sessions[channel]
        begun = time.monotonic()
        while self.is_active() and not over.wait(0.1) and time.monotonic() - begun < _PATIENCE:
            pass
        del self._sessions[channel]
        if not over.is_set():
            channel.close()
        elif self.is_active():
            answer: Any = paramiko.Message()
            answer.add_byte(cMSG_CHANNEL_CLOSE)
            answer.add_int(channel.remote_chanid)
            self._parts._send_user_message(answer)
            self._parts._unlink_channel(channel.chanid)

    def _closed(self, channel: Any, message: paramiko.Message) -> None:
        """The other side has closed a channel."""
        over = self._sessions.get(channel)
        if over is None:
            channel._handle_close(message)
            return
        with channel.lock:
            channel._set_closed()
        over.set()
