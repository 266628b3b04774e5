package dermedge.android

import android.graphics.ImageFormat
import android.media.Image
import dermedge.Model
import dermedge.Prediction
import dermedge.RgbImage
import dermedge.UsageError
import dermedge.YuvPlane
import dermedge.yuvToRgb

/**
 * Predict a camera's frame.
 *
 * @param rotation Degrees by which the frame must be turned clockwise to be upright; CameraX
 *   gives them as `imageInfo.rotationDegrees`.
 * @throws UsageError The frame has another format, or the rotation is not 0, 90, 180 or 270.
 */
public fun Model.predict(frame: Image, rotation: Int): Prediction =
    predict(frame.toRgbImage(rotation))

/**
 * Convert a camera's frame in YUV_420_888 to upright RGB.
 *
 * CameraX's `ImageProxy` wraps such an [Image]; it has the same planes, so [yuvToRgb] takes
 * them too.
 *
 * @param rotation Degrees by which the frame must be turned clockwise to be upright.
 * @throws UsageError The frame has another format, or the rotation is not 0, 90, 180 or 270.
 */
@JvmOverloads
public fun Image.toRgbImage(rotation: Int = 0): RgbImage {
    if (format != ImageFormat.YUV_420_888) {
        throw UsageError(
            "The frame has the format $format, not YUV_420_888. Configure the camera for it.",
        )
    }
    val (y, u, v) = planes.map { YuvPlane(it.buffer, it.rowStride, it.pixelStride) }
    return yuvToRgb(width, height, y, u, v, rotation)
}
