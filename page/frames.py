"""Pictures that follow the hand: one route beside Gradio's queue.

Gradio's page updates every component it has at each stage of a queued event. A function of its own in the browser that
fetches the next picture and hands it to the components that show it spares all of that.
"""

import asyncio
import json
from dataclasses import replace

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from limits import limit
from page.incoming import DROPPED
from page.layout import Layout
from page.parts import status_line
from page.studio import Visit

NONE_YET = "Choose a photo first; the sliders will act on it."
LARGEST = 1 << 16  # bytes; what a page with the most sliders sends has a tenth of it


class Frames(Layout):
    """The route `/frame`. One picture is under way at a time; of each page at most one movement waits for its turn."""

    def _wire_frames(self) -> None:
        self.frame_parts = [self.face, self.compare, self.whole, self.status]  # in the order of the answer
        self.routes = [Route("/frame", self.frame, methods=["POST"])]  # for `launch(app_kwargs={"routes": …})`
        self._turn = asyncio.Lock()  # first come, first served
        self._waiting: set[str] = set()  # sessions

    async def frame(self, request: Request) -> Response:
        """The sliders `bank` of the page `session`, set by `levels`, stand where `sent` says: a JSON object of these.

        Its `again` is true after an answer that got lost.

        Returns: a JSON list with a value or null for each of `frame_parts`; 204 where there is nothing to show, and
            400 for what no page sends.
        """
        states, body = self.blocks.state_holder, bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST:
                return Response(status_code=400)
        try:
            asked = json.loads(body)
            session, bank, levels, sent = (asked[name] for name in ("session", "bank", "levels", "sent"))
            if session not in states:  # the process was restarted
                return Response(status_code=204)
        except (KeyError, RecursionError, TypeError, ValueError):
            return Response(status_code=400)
        state, key = states[session], self.visit._id
        if not self._stands(state[key], bank, levels) or state[key].model not in self.studio:
            return Response(status_code=204)
        state[key] = self.studio.move(state[key], sent, rest=False)
        if asked.get("again"):
            state[key] = replace(state[key], full=None)
        if state[key].full is not None:  # what a slider that is let go of shows already
            return Response(status_code=204)
        full = len(self._waiting) >= limit("E4E_MAX_QUEUE")
        if full or session in self._waiting or not self.studio.live:  # the one that waits will take these edits
            return Response(status_code=204)
        self._waiting.add(session)
        try:
            await self._turn.acquire()
        finally:
            self._waiting.discard(session)
        try:
            before = state[key]
            shown = await run_in_threadpool(self._in_sentences(self.follow), before)
        finally:
            self._turn.release()
        if state[key] is before:
            state[key] = shown.get(self.visit, before)
        elif state[key].session is not before.session or state[key].full is not None:
            return Response(status_code=204)  # something newer than this frame stands there
        return JSONResponse([shown.get(part) for part in self.frame_parts])

    def follow(self, visit: Visit) -> dict:
        """What a page shows while its sliders move."""
        return self._without_photo(visit) if visit.session is None else self._show(visit, preview=True)

    def _without_photo(self, visit: Visit) -> dict:
        return {self.visit: visit, self.status: status_line(DROPPED if visit.dropped else NONE_YET)}
