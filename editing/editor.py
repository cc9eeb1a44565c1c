"""From a photo to an edited photo: open it once, render it for every move of a slider, paste the result back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from PIL import Image
from torch import Tensor

import alignment
from alignment import CutOut
from e4e_core.images import to_picture, to_tensor
from e4e_core.rendering import Renderer
from editing.directions import Direction, DirectionSet, directions_for
from errors import DownloadError

if TYPE_CHECKING:
    from e4e_core.models.e4e import E4E


@dataclass(frozen=True, eq=False)
class Session(CutOut):
    """An opened photo: everything that rendering and pasting need, and no model.

    Attributes:
        codes: float32 [1, L, D] on the CPU.
    """

    codes: Tensor


class Editor:
    """A model with its directions, which threads and users can share.

    What it keeps of a session is in its Renderer, speeds up the session's next picture, and goes with the session.

    Attributes:
        model: the E4E it edits with.
        renderer: renders its pictures; the model's weights must not change any more.
        directions: its DirectionSet, name -> Direction.
        notice: why the model's own directions are missing, as a sentence for a person; empty if they are there.
    """

    def __init__(self, model: "E4E", directions: Mapping[str, Direction] | None = None):
        """Use `directions`, or the model's own; offline, without those to be downloaded, there are none.

        Raises: DirectionError for directions that cannot be read or do not fit the model.
        """
        self.model = model
        self.renderer = Renderer(model)
        self.notice = ""
        if directions is None:
            try:
                directions = directions_for(model)
            except DownloadError as error:
                directions, self.notice = {}, str(error)
        self.directions = DirectionSet(directions)
        self.directions.check_fits(model.num_layers, model.latent_dim)

    def open(self, photo: Image.Image | Path | str | BinaryIO, face: int = 0) -> Session:
        """Find the faces of a photo, align one and encode it; models of other things take the whole picture.

        Args:
            photo: path, open file or PIL picture, of any size, mode and orientation.
            face: index into the faces found, the best first.
        Raises: PhotoError for what is no picture and for a face that is not there, NoFaceError if there is none.
        """
        return self.encode([self.cut_out(photo, face)])[0]

    def cut_out(self, photo: Image.Image | Path | str | BinaryIO, face: int = 0) -> CutOut:
        """The first half of `open`, which needs no model, only its input's size and template; same errors."""
        return alignment.cut_out(photo, face, self.model.input_size, self.model.template, self.model.aspect)

    def encode(self, parts: Sequence[CutOut]) -> list[Session]:
        """The second half of `open`, for several photos at once: invert what was cut out."""
        with torch.no_grad():
            codes = self.model.invert(torch.cat([to_tensor(part.picture) for part in parts])).cpu()  # [n, L, D]
        return [
            Session(part.photo, part.faces, part.face, part.crop, part.picture, code[None])
            for part, code in zip(parts, codes, strict=True)
        ]

    def choose_face(self, session: Session, face: int) -> Session:
        """The same photo with another of its faces, without searching it again. Raises PhotoError if not there."""
        size, template, aspect = self.model.input_size, self.model.template, self.model.aspect
        return self.encode([alignment.cut_out(session.photo, face, size, template, aspect, session.faces)])[0]

    def render(
        self, session: Session, strengths: Mapping[str, float], fidelity: float = 1.0, size: int | None = None
    ) -> Image.Image:
        """The edited picture, always computed from the codes of the photo itself.

        Args:
            strengths: name -> strength in the direction's own range; missing ones are 0, the identity.
            fidelity: 0 the single w (most editable) … 1 the encoder's W^k (most faithful).
            size: longer side of a preview in pixels, a power of two; None is full size.
        Returns: RGB, R×R pixels or what the model's aspect leaves of them.
        Raises: DirectionError for unknown directions and impossible strengths or fidelity.
        """
        codes = self.directions.edit_codes(session.codes, strengths, fidelity)
        image = self.renderer.render(codes, size, owner=session)  # [1, 3, R, R]
        return to_picture(_content(image, self.model.aspect))

    def render_all(
        self, sessions: Sequence[Session], strengths: Mapping[str, float], fidelity: float = 1.0
    ) -> list[Image.Image]:
        """The same edits of several sessions at full size, in one batch where the device gains by it; as `render`."""
        codes = self.directions.edit_codes(torch.cat([session.codes for session in sessions]), strengths, fidelity)
        return [to_picture(_content(image[None], self.model.aspect)) for image in self.renderer.render(codes)]

    def paste(
        self,
        session: Session,
        picture: Image.Image,
        fidelity: float = 1.0,
        region: alignment.Region = "everything",
        feather: float = alignment.FEATHER,
    ) -> Image.Image:
        """The photo with the edit of `picture` in it; outside the crop, and without an edit, it stays as it is.

        Args:
            fidelity: the one `picture` was rendered with, so that only its sliders count as the edit.
            region, feather: see `alignment.paste_back`.
        Raises: PhotoError for impossible ones.
        """
        unedited = self.render(session, {}, fidelity)
        return alignment.paste_back(session.photo, picture, session.crop, unedited, region, feather)


def _content(image: Tensor, aspect: tuple[int, int]) -> Tensor:
    """[n, 3, R, R] -> its largest centred part of the ratio `aspect`: cars fill rows 64 … 448 of 512."""
    side = image.shape[-1]
    width, height = side * aspect[0] // max(aspect), side * aspect[1] // max(aspect)
    left, top = (side - width) // 2, (side - height) // 2
    return image[..., top : top + height, left : left + width]
