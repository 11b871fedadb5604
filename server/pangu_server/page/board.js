// The live charts: /metrics every two seconds while the page is seen, five minutes of it.

import { inWords, request } from "./api.js";
import { Chart } from "./charts.js";
import { bytes, number, seconds } from "./format.js";
import { Scrape, quantile, rate } from "./prometheus.js";

const INTERVAL_MS = 2000;
const KEPT_SECONDS = 300;
const QUANTILE_SECONDS = 30; // latencies of one interval would be too few to rank
const RESTARTED = "process_start_time_seconds";

const UNTOLD = "The server does not tell.";
const UNMEASURED = "No answer yet since this page was opened.";

const latency = (name) => ({ recent, now }) => [0.5, 0.95].map((q) => quantile(q, name, recent, now));
const gauges = (...names) => ({ now }) => names.map((name) => now.value(name));

// [title, lines, format, what it says when empty, values of a scrape given the one before and the one 30 s ago]
const CHARTS = [
  ["Requests", ["running", "waiting"], number, UNTOLD, gauges("vllm:num_requests_running", "vllm:num_requests_waiting")],
  ["Tokens per second", ["generated", "prompt"], number, "Waiting for a second look at the server…", ({ before, now, elapsed }) =>
    ["vllm:generation_tokens_total", "vllm:prompt_tokens_total"].map((name) => rate(name, before, now, elapsed))],
  ["Time to first token", ["p50", "p95"], seconds, UNMEASURED, latency("vllm:time_to_first_token_seconds")],
  ["Inter-token latency", ["p50", "p95"], seconds, UNMEASURED, latency("vllm:inter_token_latency_seconds")],
  ["Memory", ["resident", "weights", "KV cache?", "GPU?"], bytes, UNTOLD,
    gauges("process_resident_memory_bytes", "pangu_model_weight_bytes", "pangu_kv_cache_bytes",
      "pangu_gpu_memory_used_bytes")],
];

export class Board {
  /** `onTick`: called before each scrape, for what else is to be looked at then. */
  constructor(section, onTick) {
    this.note = section.querySelector(".note");
    this.onTick = onTick;
    this.charts = CHARTS.map(([title, lines, format, nothing]) => new Chart(title, lines, format, nothing));
    section.querySelector(".charts").append(...this.charts.map((chart) => chart.element));
    this._forget();
    this.timer = null;
    document.addEventListener("visibilitychange", () => this._tick());
    this._tick();
  }

  _forget() {
    this.scrapes = []; // [seconds, Scrape], oldest first
    this.points = CHARTS.map(() => []);
  }

  async _tick() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    const round = (this.round = {}); // a later tick takes over: never two loops
    this.onTick();
    try {
      const text = await (await request("metrics")).text();
      if (round !== this.round) return;
      this._add(performance.now() / 1000, new Scrape(text));
      this.note.textContent = "";
    } catch (error) {
      this.note.textContent = inWords(error);
    }
    if (round === this.round) this.timer = setTimeout(() => this._tick(), INTERVAL_MS);
  }

  _add(time, scrape) {
    if (this.scrapes.at(-1)?.[1].value(RESTARTED) !== scrape.value(RESTARTED)) this._forget();
    const [beforeTime, before] = this.scrapes.at(-1) ?? [time, scrape];
    const [, recent] = this.scrapes.find(([at]) => time - at <= QUANTILE_SECONDS) ?? [time, scrape];
    this.scrapes = [...this.scrapes.filter(([at]) => time - at <= QUANTILE_SECONDS), [time, scrape]];
    const view = { now: scrape, before, recent, elapsed: time - beforeTime };
    CHARTS.forEach(([, , , , values], index) => {
      const kept = this.points[index].filter(([at]) => time - at <= KEPT_SECONDS);
      this.points[index] = [...kept, [time, values(view)]];
      this.charts[index].draw(this.points[index], time);
    });
  }
}
