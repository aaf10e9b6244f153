"""Multi-crop by libjpeg-turbo and OpenCV: the decisions of `dinoctl.data.augment`, pixels close to its own.

Imported where ``crops.augmentation.backend`` is ``fast`` only: the exact path does without both libraries.
"""

import cv2

cv2.setNumThreads(1)  # a worker is one core; results do not depend on it
