/** Wait for the frames of a video. */

/** Events after which a video gives no more frames. */
const ENDS = ["ended", "emptied", "error"] as const;

/**
 * Wait for the next new frame of a video.
 *
 * @returns False if the video has ended or the signal is aborted.
 */
export async function nextFrame(video: HTMLVideoElement, signal?: AbortSignal): Promise<boolean> {
  if (signal?.aborted || hasEnded(video)) return false;
  const listeners = new AbortController();
  const more = await new Promise<boolean>((resolve) => {
    const stop = (): void => resolve(false);
    const options = { signal: listeners.signal };
    for (const name of ENDS) video.addEventListener(name, stop, options);
    signal?.addEventListener("abort", stop, options);
    // Tracks of a camera that is switched off end without an event of the video.
    for (const track of tracks(video)) track.addEventListener("ended", stop, options);
    requestFrame(video, () => resolve(true), listeners.signal);
  });
  listeners.abort();
  return more;
}

function hasEnded(video: HTMLVideoElement): boolean {
  const all = tracks(video);
  const stopped = all.length > 0 && all.every((track) => track.readyState === "ended");
  return video.ended || video.error !== null || stopped;
}

function tracks({ srcObject }: HTMLVideoElement): readonly MediaStreamTrack[] {
  const isStream = typeof MediaStream !== "undefined" && srcObject instanceof MediaStream;
  return isStream ? srcObject.getVideoTracks() : [];
}

/** Call back at the next new frame, unless the signal is aborted first. */
function requestFrame(video: HTMLVideoElement, callback: () => void, signal: AbortSignal): void {
  if ("requestVideoFrameCallback" in video) {
    const handle = video.requestVideoFrameCallback(callback);
    signal.addEventListener("abort", () => video.cancelVideoFrameCallback(handle));
    return;
  }
  // Older browsers do not tell when a frame is new; `timeupdate` would be too rare.
  const element: HTMLVideoElement = video;
  const before = element.currentTime;
  requestAnimationFrame(function look() {
    if (signal.aborted) return;
    if (element.currentTime !== before && element.readyState >= 2) callback();
    else requestAnimationFrame(look);
  });
}
