"""From a photo to an edited photo: open it once, render it for every move of a slider, paste the result back."""

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from weakref import ref

import torch
from PIL import Image
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

import alignment
from alignment import CutOut
from e4e_core.images import content, to_picture, to_tensor
from e4e_core.rendering import Renderer
from editing.directions import Direction, DirectionSet, directions_for
from editing.mixing import Mix
from errors import DownloadError

if TYPE_CHECKING:
    from e4e_core.models.e4e import E4E
    from e4e_core.models.stylegan2 import Generator

READY = 2  # tuned generators that are kept ready to render, those of the sessions seen last

NOTHING = Mix()  # of a second photo


@dataclass(frozen=True, eq=False)
class Session(CutOut):
    """An opened photo: everything that rendering and pasting need, and no model that others share.

    Attributes:
        codes: float32 [1, L, D] on the CPU.
        generator: the one that `refine.tune_generator` tuned for this photo, on the CPU; None is the model's.
    """

    codes: Tensor
    generator: "Generator | None" = None


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
        self._tuned: dict[int, tuple[ref, Renderer]] = {}  # by id of the generator, the one seen last is last
        self._unedited = WeakTensorKeyDictionary()  # by the session's codes: {size: ((fidelity, generator), picture)}
        self._lock = threading.Lock()
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

    def with_directions(self, directions: Mapping[str, Direction]) -> "Editor":
        """The same model with other sliders; it shares all memory. Raises DirectionError if they do not fit."""
        other = copy.copy(self)
        other.directions = DirectionSet(directions)
        other.directions.check_fits(self.model.num_layers, self.model.latent_dim)
        return other

    def render(
        self,
        session: Session,
        strengths: Mapping[str, float],
        fidelity: float = 1.0,
        size: int | None = None,
        second: Session | None = None,
        mix: Mix = NOTHING,
    ) -> Image.Image:
        """The edited picture, always computed from the codes of the photo itself.

        Args:
            strengths: name -> strength in the direction's own range; missing ones are 0, the identity.
            fidelity: 0 the single w (most editable) … 1 the encoder's W^k (most faithful), of both photos.
            size: longer side of a preview in pixels, a power of two; None is full size.
            second, mix: another photo opened with this model, and what is taken of it before the edits are added.
        Returns: RGB, R×R pixels or what the model's aspect leaves of them.
        Raises: DirectionError for unknown directions and impossible strengths or fidelity.
        """
        return self.picture(self.codes(session, strengths, fidelity, second, mix), size, session)

    def codes(
        self,
        session: Session,
        strengths: Mapping[str, float],
        fidelity: float = 1.0,
        second: Session | None = None,
        mix: Mix = NOTHING,
    ) -> Tensor:
        """The codes float32 [1, L, D] that `render` draws; same arguments and errors."""
        codes = session.codes
        if second is not None and mix:
            first, other = (self.directions.edit_codes(each.codes, {}, fidelity) for each in (session, second))
            codes, fidelity = mix.blend(first, other), 1.0
        return self.directions.edit_codes(codes, strengths, fidelity)

    def picture(self, codes: Tensor, size: int | None = None, owner: Session | None = None) -> Image.Image:
        """What the model, or the generator of the owner, draws of codes float32 [1, L, D]; the rest as for `render`."""
        image = self._renderer(owner).render(codes, size, owner=owner)  # [1, 3, R, R]
        return to_picture(content(image, self.model.aspect))

    def model_of(self, session: Session) -> "E4E":
        """The model, or for a session with a generator of its own the model with that one, on the same device."""
        if session.generator is None:
            return self.model
        generator, device = session.generator, self.model.device
        return self.model.with_generator(generator if device.type == "cpu" else copy.deepcopy(generator).to(device))

    def render_all(
        self, sessions: Sequence[Session], strengths: Mapping[str, float], fidelity: float = 1.0
    ) -> list[Image.Image]:
        """The same edits of several sessions at full size, in one batch where the device gains by it; as `render`."""
        if any(session.generator for session in sessions):
            return [self.render(session, strengths, fidelity) for session in sessions]
        codes = self.directions.edit_codes(torch.cat([session.codes for session in sessions]), strengths, fidelity)
        return [to_picture(content(image[None], self.model.aspect)) for image in self.renderer.render(codes)]

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
        size = max(picture.size) if max(picture.size) < self.model.resolution else None
        unedited = self._unedited_of(session, fidelity, size)
        return alignment.paste_back(session.photo, picture, session.crop, unedited, region, feather)

    def _unedited_of(self, session: Session, fidelity: float, size: int | None) -> Image.Image:
        """The session without edits, kept for its next picture. `size` as in `render`."""
        wanted = (fidelity, session.generator and ref(session.generator))
        with self._lock:
            kept = self._unedited.setdefault(session.codes, {})  # copies of a session share them
        known, picture = kept.get(size, (None, None))
        if known != wanted:
            picture = self.render(session, {}, fidelity, size)
            kept[size] = (wanted, picture)
        return picture

    def forget_all(self) -> None:
        """Drop what only makes the next pictures of its sessions faster."""
        with self._lock:
            self._unedited.clear()
            tuned = [renderer for _, renderer in self._tuned.values()]
        for renderer in (self.renderer, *tuned):
            renderer.forget_all()

    def _renderer(self, session: Session | None) -> Renderer:
        """The one that all share, or one for this session's generator, which goes with the session first seen."""
        if session is None or session.generator is None:
            return self.renderer
        key = id(session.generator)  # copies of a session share it, such as one pasted into another photo
        with self._lock:
            kept = self._tuned.pop(key, None)
            kept = kept or (ref(session, lambda _: self._tuned.pop(key, None)), Renderer(self.model_of(session)))
            self._tuned[key] = kept
            for old in list(self._tuned)[:-READY]:
                self._tuned.pop(old, None)
        return kept[1]
