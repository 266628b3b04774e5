/** Read JSON strictly, and write it canonically (RFC 8785). */

import { type DermedgeError, UsageError } from "./errors";
import type { Json, JsonObject } from "./spec";

/** Class of an error that a caller chooses. */
export type ErrorClass = new (message: string) => DermedgeError;

/** Length of the longest number that RFC 8785 writes without an exponent. */
const LONGEST_INTEGER = "-999999999999999900000".length;
/** Python's parser gives up near this depth, and no manifest comes close to it. */
const DEEPEST = 900;
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/y;
const PLAIN_TEXT = /[^"\\\u0000-\u001f]*/y;
const SPACE = /[ \t\n\r]*/y;
const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};
// With the flag `u`, halves of a valid pair do not match.
const LONE_SURROGATE = /[\ud800-\udfff]/u;

/** Return a text in single quotes, as messages quote names. */
export function quote(value: unknown): string {
  return typeof value === "string" ? `'${value}'` : (JSON.stringify(value) ?? String(value));
}

/** Return names in single quotes, separated by commas. */
export function quoteAll(names: Iterable<string>): string {
  return Array.from(names, quote).join(", ");
}

/**
 * Parse UTF-8 JSON; refuse what languages read differently.
 *
 * That is a duplicate key, NaN, an infinity, and an integer beyond 2^53 - 1. An integer that
 * RFC 8785 writes for a float, such as 100000000000000000000, is read as that float.
 * `JSON.parse` would keep the last of two equal keys and round large integers.
 *
 * @param data - The JSON text.
 * @param where - Name of the text, for messages.
 * @param errorClass - Class of the error to throw.
 */
export function parseJson(data: Uint8Array, where: string, errorClass: ErrorClass): Json {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
    return new Parser(text).parse();
  } catch (error) {
    const reason = error instanceof SyntaxError ? error.message : "it is not UTF-8";
    throw new errorClass(`${where} is not valid JSON (${reason}). Get or write the file again.`);
  }
}

/** A recursive-descent parser of one JSON text. */
class Parser {
  private position = 0;
  private depth = 0;

  constructor(private readonly text: string) {}

  parse(): Json {
    const value = this.value();
    if (this.position < this.text.length) throw this.unexpected();
    return value;
  }

  /** Read a value and the space around it. */
  private value(): Json {
    this.match(SPACE);
    const value = this.bareValue();
    this.match(SPACE);
    return value;
  }

  private bareValue(): Json {
    switch (this.text[this.position]) {
      case "{":
        return this.nested(() => this.object());
      case "[":
        return this.nested(() => this.array());
      case '"':
        return this.string();
      case "t":
        return this.word("true", true);
      case "f":
        return this.word("false", false);
      case "n":
        return this.word("null", null);
      default:
        return this.number();
    }
  }

  private nested<T>(read: () => T): T {
    if (++this.depth > DEEPEST) throw new SyntaxError(`it is nested over ${DEEPEST} levels`);
    this.position++;
    const value = read();
    this.depth--;
    return value;
  }

  private object(): JsonObject {
    // Without a prototype, a key named `__proto__` is a key like any other.
    const result: JsonObject = Object.create(null);
    this.match(SPACE);
    if (this.skip("}")) return result;
    do {
      this.match(SPACE);
      if (this.text[this.position] !== '"') throw this.unexpected();
      const key = this.string();
      if (key in result) throw new SyntaxError(`a key is given twice: ${quote(key)}`);
      this.match(SPACE);
      if (!this.skip(":")) throw this.unexpected();
      result[key] = this.value();
    } while (this.skip(","));
    if (!this.skip("}")) throw this.unexpected();
    return result;
  }

  private array(): Json[] {
    const result: Json[] = [];
    this.match(SPACE);
    if (this.skip("]")) return result;
    do result.push(this.value());
    while (this.skip(","));
    if (!this.skip("]")) throw this.unexpected();
    return result;
  }

  private string(): string {
    this.position++;
    let result = "";
    for (;;) {
      result += this.match(PLAIN_TEXT)?.[0] ?? "";
      if (this.skip('"')) return result;
      if (!this.skip("\\")) throw this.unexpected();
      result += this.escape();
    }
  }

  private escape(): string {
    const letter = this.text[this.position++];
    if (letter !== "u") {
      if (letter !== undefined && Object.hasOwn(ESCAPES, letter)) return ESCAPES[letter];
      throw new SyntaxError(`invalid escape at character ${this.position - 1}`);
    }
    const digits = this.text.slice(this.position, this.position + 4);
    if (!/^[0-9a-fA-F]{4}$/.test(digits)) throw this.unexpected();
    this.position += 4;
    return String.fromCharCode(Number.parseInt(digits, 16));
  }

  private number(): number {
    const found = this.match(NUMBER);
    if (!found) throw this.unexpected();
    const [text, fraction, exponent] = found;
    const value = Number(text);
    if (fraction !== undefined || exponent !== undefined) {
      if (!Number.isFinite(value)) throw new SyntaxError(`${text} is not a finite number`);
    } else if (
      text.length > LONGEST_INTEGER ||
      !(Number.isSafeInteger(value) || String(value) === text)
    ) {
      throw new SyntaxError(`${text.slice(0, 40)} is beyond 2^53 - 1`);
    }
    return value;
  }

  private word<T>(word: string, value: T): T {
    if (!this.text.startsWith(word, this.position)) throw this.unexpected();
    this.position += word.length;
    return value;
  }

  private match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.position;
    const found = pattern.exec(this.text);
    if (found) this.position = pattern.lastIndex;
    return found;
  }

  private skip(letter: string): boolean {
    if (this.text[this.position] !== letter) return false;
    this.position++;
    return true;
  }

  private unexpected(): SyntaxError {
    const letter = this.text[this.position];
    const what = letter === undefined ? "the text ends" : `unexpected ${JSON.stringify(letter)}`;
    return new SyntaxError(`${what} at character ${this.position}`);
  }
}

/**
 * Serialise a JSON value as the one text that every language agrees on.
 *
 * Source: RFC 8785, JSON Canonicalization Scheme. It is defined by ECMAScript's own
 * serialisation of numbers and texts, and orders keys by UTF-16 code units.
 *
 * @throws UsageError if JSON cannot carry the value: NaN, infinity or half a surrogate pair.
 */
export function canonicalJson(value: Json): string {
  if (typeof value === "number") {
    if (Number.isFinite(value)) return String(value);
    throw new UsageError(`${value} is not a JSON number. Write null where there is no value.`);
  }
  if (typeof value === "string") {
    if (!LONE_SURROGATE.test(value)) return JSON.stringify(value);
    throw new UsageError(
      `The text ${JSON.stringify(value)} holds half a surrogate pair. Write valid Unicode.`,
    );
  }
  if (value === null || typeof value === "boolean") return String(value);
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  const members = Object.keys(value)
    .sort()
    .map((key) => `${canonicalJson(key)}:${canonicalJson(value[key])}`);
  return `{${members.join(",")}}`;
}
