/**
 * Find JPEG files with rows that the decoder filled in.
 *
 * A decoder stops at a marker or at the end of the data. It fills the remaining blocks with
 * grey (128), and a browser reports no error.
 */

const [START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN, RESTART_INTERVAL] = [0xd8, 0xd9, 0xda, 0xdd];
const TABLES = [0xc4, 0xc8, 0xcc]; // These markers are among those of frames.
const PROGRESSIVE = [0xc2, 0xca];
const COEFFICIENTS = 64;
/** Bytes of zeros that a disk or a network file system leaves in place of a lost block. */
const LOST_BLOCK = 512;

interface Segment {
  readonly marker: number;
  readonly start: number;
  readonly end: number;
}

/** The part of a JPEG's headers that tells how much compressed data must follow. */
export interface JpegHeader {
  readonly width: number;
  readonly height: number;
  readonly frame: number;
  /** Horizontal and vertical sampling by component. */
  readonly sampling: ReadonlyMap<number, readonly [number, number]>;
  readonly interval: number;
  /** Offset of the compressed data of the first scan. */
  readonly start: number;
  /** Parameters of every scan up to the end of the picture. */
  readonly scans: readonly Uint8Array[];
  /** A marker ends the picture. */
  readonly closed: boolean;
}

/** Read the segments of a JPEG; null if they are not in order. */
export function readJpeg(data: Uint8Array): JpegHeader | null {
  let frame: Segment | null = null;
  let [interval, start] = [0, 0];
  const scans: Uint8Array[] = [];
  let closed = false;
  for (const segment of segments(data)) {
    const { marker } = segment;
    if (marker === END_OF_IMAGE) {
      closed = true;
    } else if (marker === START_OF_SCAN) {
      if (scans.length === 0) start = segment.end;
      scans.push(data.subarray(segment.start, segment.end));
    } else if (scans.length === 0 && isFrame(marker)) {
      frame = segment;
    } else if (scans.length === 0 && marker === RESTART_INTERVAL) {
      interval = data[segment.start] * 256 + data[segment.start + 1];
    }
  }
  if (!frame || scans.length === 0) return null;
  const content = data.subarray(frame.start, frame.end);
  const sampling = new Map<number, readonly [number, number]>();
  for (let at = 6; at < content.length - 2; at += 3) {
    const factors = content[at + 1];
    sampling.set(content[at], [Math.max(factors >> 4, 1), Math.max(factors & 15, 1)]);
  }
  if (sampling.size === 0) return null;
  return {
    width: content[3] * 256 + content[4],
    height: content[1] * 256 + content[2],
    frame: frame.marker,
    sampling,
    interval,
    start,
    scans,
    closed,
  };
}

/** What a check of a JPEG found in its compressed data. */
export interface JpegCheck {
  /** Sentences about signs of damage that are not certain. */
  readonly quality: readonly string[];
  /**
   * Two files whose pictures are equal if no row was filled in: a decoder that has all
   * blocks ignores further data.
   */
  readonly probes: readonly [Uint8Array, Uint8Array];
}

/**
 * Check that a JPEG file holds all scans and restart markers of its first picture.
 *
 * @throws Error if part of the picture is missing.
 */
export function checkJpeg(data: Uint8Array, header: JpegHeader): JpegCheck {
  if (!header.closed) throw new Error("the end marker is missing");
  if (!hasAllScans(header)) throw new Error("scans are missing");
  const end = findMarker(data, header.start) ?? data.length;
  if (lacksRestarts(data, header, end)) throw new Error("restart markers are missing");
  return {
    quality: hasLostBlock(data.subarray(header.start, end))
      ? ["The JPEG's data holds a block of zeros, and part of the picture may be wrong."]
      : [],
    probes: makeProbes(data, header, end),
  };
}

/** Yield every segment, and the end of the picture as the last one. */
function* segments(data: Uint8Array): Generator<Segment> {
  for (let at = findMarker(data, 2); at !== null;) {
    const marker = data[at + 1];
    at += 2;
    if (marker === END_OF_IMAGE) {
      yield { marker, start: at, end: at };
      return;
    }
    if (marker !== 0x01 && marker !== START_OF_IMAGE) {
      const end = at + data[at] * 256 + data[at + 1];
      yield { marker, start: at + 2, end };
      at = Math.max(end, at + 2);
    }
    at = findMarker(data, at);
  }
}

/** Return the offset of the next marker that does not belong to compressed data. */
function findMarker(data: Uint8Array, from: number): number | null {
  for (let at = data.indexOf(0xff, from); at >= 0; at = data.indexOf(0xff, at + 1)) {
    const next = data[at + 1];
    if (next === undefined) return null;
    // Compressed data holds FF 00 for the value FF, and restart markers FF D0 to FF D7.
    if (next !== 0 && next !== 0xff && !isRestart(next)) return at;
  }
  return null;
}

function isFrame(marker: number): boolean {
  return marker >= 0xc0 && marker <= 0xcf && !TABLES.includes(marker);
}

function isRestart(marker: number): boolean {
  return marker >= 0xd0 && marker <= 0xd7;
}

/** Return whether the scans hold every coefficient in full precision. */
function hasAllScans({ frame, sampling, scans }: JpegHeader): boolean {
  const progressive = PROGRESSIVE.includes(frame);
  if (!progressive && scans[0][0] === sampling.size) return true;
  const missing = new Set<string>();
  for (const component of sampling.keys()) {
    for (let k = 0; k < COEFFICIENTS; k++) missing.add(`${component} ${k}`);
  }
  for (const scan of scans) {
    const count = scan[0] ?? 0;
    const parameters = scan.subarray(1 + 2 * count);
    const [first, last, approximation] = progressive
      ? [parameters[0] ?? 0, parameters[1] ?? 0, parameters[2] ?? 0]
      : [0, COEFFICIENTS - 1, 0];
    if (approximation & 15) continue;
    for (let index = 0; index < count; index++) {
      for (let k = first; k <= last; k++) missing.delete(`${scan[1 + 2 * index]} ${k}`);
    }
  }
  return missing.size === 0;
}

/** Return whether restart markers are missing in a first scan of all components. */
function lacksRestarts(data: Uint8Array, header: JpegHeader, end: number): boolean {
  const { sampling, interval, start, scans, width, height } = header;
  if (!interval || scans[0][0] !== sampling.size) return false;
  const factors = sampling.size === 1 ? [[1, 1] as const] : [...sampling.values()];
  const across = Math.max(...factors.map(([horizontal]) => horizontal));
  const down = Math.max(...factors.map(([, vertical]) => vertical));
  const units = Math.ceil(width / (8 * across)) * Math.ceil(height / (8 * down));
  const expected = Math.floor((units - 1) / interval);
  let found = 0;
  for (let at = data.indexOf(0xff, start); at >= 0 && at < end; at = data.indexOf(0xff, at + 1)) {
    if (found === expected) break;
    if (!isRestart(data[at + 1])) continue;
    if (data[at + 1] !== 0xd0 + (found % 8)) return true;
    found++;
  }
  return found < expected;
}

function hasLostBlock(data: Uint8Array): boolean {
  // Every run of zeros that is long enough covers a multiple of its length.
  for (let at = LOST_BLOCK - 1; at < data.length; at += LOST_BLOCK) {
    if (data[at] !== 0) continue;
    let [first, last] = [at, at];
    while (first > 0 && data[first - 1] === 0) first--;
    while (last - first + 1 < LOST_BLOCK && data[last + 1] === 0) last++;
    if (last - first + 1 >= LOST_BLOCK) return true;
  }
  return false;
}

function makeProbes(
  data: Uint8Array,
  { interval, start }: JpegHeader,
  end: number,
): readonly [Uint8Array, Uint8Array] {
  let cut = end;
  if (!interval) {
    // Without an interval, a decoder stops at a restart marker too.
    for (let at = data.indexOf(0xff, start); at >= 0 && at < end; at = data.indexOf(0xff, at + 1)) {
      if (isRestart(data[at + 1])) {
        cut = at;
        break;
      }
    }
  }
  const head = data.subarray(0, cut);
  const closed = Uint8Array.of(0xff, END_OF_IMAGE);
  return [concatenate([head, closed]), concatenate([head, makeNoise(interval > 0), closed])];
}

/** Return compressed data that decodes to some blocks, the same at each call. */
function makeNoise(restarts: boolean): Uint8Array {
  let value = 1;
  const noise = Uint8Array.from({ length: restarts ? 512 : 4096 }, () => {
    value = (Math.imul(1664525, value) + 1013904223) >>> 0;
    const byte = value >>> 24;
    return byte === 0xff ? 0 : byte;
  });
  if (!restarts) return noise;
  // The decoder may wait for any of the eight restart markers.
  return concatenate(
    Array.from({ length: 16 }, (_, index) => [
      noise,
      Uint8Array.of(0xff, 0xd0 + (index % 8)),
    ]).flat(),
  );
}

function concatenate(parts: readonly Uint8Array[]): Uint8Array {
  const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}
