"""A link on which the client's bytes travel slowly; the server's do not."""

import socket
import threading
import time

_CHUNK = 8192


class SlowLink:
    """Listens on `target`, and passes what comes on to `address`, so many bytes
    each second. `passed`: the client's bytes so far.
    """

    def __init__(self, address, bytes_per_second):
        self._address, self._rate = address, bytes_per_second
        self.passed = 0
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.target = f"127.0.0.1:{self._sockets[0].getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        try:
            while True:
                client, _ = self._sockets[0].accept()
                # Little waits here; the rest stays with the client.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                server = socket.create_connection(self._address)
                self._sockets += [client, server]
                for args in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=args,
                                     daemon=True).start()
        except OSError:
            pass  # closed

    def _pass(self, source, sink, is_slow):
        try:
            while data := source.recv(_CHUNK):
                sink.sendall(data)
                if is_slow:
                    self.passed += len(data)
                    time.sleep(len(data) / self._rate)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            # As a connection that breaks: neither end hears of the other.
            for end in (source, sink):
                end.close()

    def close(self):
        for each in self._sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()
