"""The fast backend: same decisions and boxes as the exact one for the same key, so that crops correspond one to one."""

from __future__ import annotations

import cv2

from dinoctl.data.augment import Crop, Cropper
from dinoctl.data.box import Box, crop_box
from dinoctl.data.decode import Pixels
from dinoctl.data.fast.color import FAST
from dinoctl.data.fast.picture import Picture, open_picture
from dinoctl.data.fast.resize import KEPT, halvings, resized


class FastMultiCrop(Cropper[Picture]):
    """libjpeg-turbo and OpenCV at work. A JPEG is decoded as small as its key's crops allow."""

    operations = FAST

    def open(self, data: bytes, *, seed: int, epoch: int, sample_id: int) -> Picture:  # noqa: D102
        def allowed(width: int, height: int) -> int:
            if min(width, height) < 2 * KEPT * min(view.size for view in self.views):
                return 0  # whatever the crops; most images, so their random numbers are drawn once
            boxes = (
                (crop_box(width, height, view.scale, self._log_aspect, u), view.size)
                for view, u in self._rows(seed, epoch, sample_id)
            )
            return min(halvings(box, size) for box, size in boxes)

        return open_picture(data, allowed)

    def picture(self, pixels: Pixels) -> Picture:  # noqa: D102
        return Picture(pixels, pixels.shape[1], pixels.shape[0])

    def dimensions(self, image: Picture) -> tuple[int, int]:  # noqa: D102
        return image.width, image.height

    def resized(self, image: Picture, box: Box, size: int) -> Pixels:  # noqa: D102
        return resized(image, box, size)

    def write(self, crop: Pixels, output: Crop) -> None:  # noqa: D102
        if crop.ndim == 3 and output.flags.c_contiguous:
            cv2.split(crop, list(output))  # straight into the output's planes
        else:
            output[:] = crop if crop.ndim == 2 else crop.transpose(2, 0, 1)
