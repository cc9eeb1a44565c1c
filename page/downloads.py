"""Files for the person at the page: pictures, settings."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from editing.export import save_png
from page.incoming import WORK, check_open
from page.layout import Layout
from page.parts import status_line
from page.studio import Visit


class Downloads(Layout):
    """The handlers of the download buttons."""

    def _wire_downloads(self) -> None:
        for button, save in (
            (self.save_face, self.download_face),
            (self.save_photo, self.download_photo),
            (self.save_grid, self.download_grid),
            (self.save_settings, self.download_settings),
        ):
            outputs = [self.visit, self.file, self.status]
            button.click(
                self._in_sentences(save), [self.visit], outputs, show_progress_on=[self.status], **WORK
            ).success(fn=None, js="() => window.downloadReady()")

    def download_face(self, visit: Visit) -> dict:
        check_open(visit)
        visit, picture, _ = self.studio.render(visit)
        return self._picture(visit, picture, "edited-face.png")

    def download_photo(self, visit: Visit) -> dict:
        check_open(visit)
        visit, picture, _ = self.studio.render(visit)
        return self._picture(visit, self.studio.paste(visit, picture), "edited-photo.png")

    def download_grid(self, visit: Visit) -> dict:
        check_open(visit)
        return self._picture(visit, self.studio.grid(visit), "edited-grid.png")

    def download_settings(self, visit: Visit) -> dict:
        settings = self.studio.settings(visit)
        text = json.dumps(settings, ensure_ascii=False, indent=2)
        written = "The settings hold where the sliders stand, nothing of the photo."
        return self._download(visit, "settings.json", lambda path: path.write_text(text, encoding="utf-8"), written)

    def _picture(self, visit: Visit, picture: Image.Image, name: str) -> dict:
        settings = self.studio.settings(visit)
        text = f"{name} is {picture.width} × {picture.height} pixels."
        return self._download(visit, name, lambda path: save_png(picture, path, settings), text)

    def _download(self, visit: Visit, name: str, write: Callable[[Path], Any], text: str) -> dict:
        """A file in Gradio's temporary folder, which is emptied on schedule."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(path)
            kept = self.file.move_resource_to_block_cache(path)
        return {
            self.visit: visit,
            self.file: {"path": kept, "orig_name": name, "meta": {"_type": "gradio.FileData"}},
            self.status: status_line(text, self.studio.where(visit.model)),
        }
