// Mouse, touch, pen and keys, as what they mean: turn, pan, zoom, point, choose.

const TURN = 0.0062;  // radians per CSS pixel
const TAP = 6;        // CSS pixels; a pointer that moved less was a click

class Pointers {
  constructor(canvas, viewer) {
    Object.assign(this, { canvas, viewer, down: new Map(), moved: 0, lastTap: { time: 0, x: 0, y: 0 }, span: 0 });
    const on = (name, handler, options) => canvas.addEventListener(name, handler.bind(this), options);
    on('pointerdown', this.press);
    on('pointermove', this.move);
    on('pointerup', this.lift);
    on('pointercancel', this.lift);
    on('wheel', this.wheel, { passive: false });
    on('contextmenu', (event) => event.preventDefault());
    on('pointerleave', () => viewer.pointAt(null));
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  press(event) {
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    if (!this.down.size) this.moved = 0;
    this.down.set(event.pointerId, { x: event.clientX, y: event.clientY, button: event.button, shift: event.shiftKey });
    this.span = 0;
  }

  move(event) {
    const last = this.down.get(event.pointerId);
    if (!last) { this.viewer.pointAt(this.place(event)); return; }
    const dx = event.clientX - last.x, dy = event.clientY - last.y;
    Object.assign(last, { x: event.clientX, y: event.clientY });
    this.moved += Math.hypot(dx, dy);
    if (this.moved < TAP) return;
    if (this.down.size === 1) {
      if (last.button || last.shift || event.shiftKey) this.viewer.pan(dx, dy);
      else this.viewer.turn(TURN * dx, TURN * dy);
    } else if (this.down.size === 2) {
      const [a, b] = [...this.down.values()], span = Math.hypot(a.x - b.x, a.y - b.y) || 1;
      if (this.span) this.viewer.zoom(this.span / span);
      this.span = span;
      this.viewer.pan(dx / 2, dy / 2);
    }
  }

  lift(event) {
    const last = this.down.get(event.pointerId);
    this.down.delete(event.pointerId);
    this.span = 0;
    if (!last || event.type === 'pointercancel' || this.moved >= TAP || last.button || this.down.size) return;
    const [x, y] = this.place(event);
    const { lastTap } = this, time = event.timeStamp;
    this.lastTap = { time, x, y };
    if (time - lastTap.time < 400 && Math.hypot(x - lastTap.x, y - lastTap.y) < 4 * TAP) this.viewer.centreOn(x, y);
    else this.viewer.choose(x, y);
  }

  wheel(event) {
    // Inside another page the wheel belongs to that until the picture is in use.
    if ((this.viewer.embedded || this.viewer.framed) && document.activeElement !== this.canvas) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 240 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0014;  // a pinch on a touchpad comes as a wheel with ctrl
    this.viewer.zoom(Math.exp(Math.max(-400, Math.min(400, event.deltaY * lines)) * speed));
  }
}

// What the keys do; `?` shows the same list on the page.
const keyAction = (viewer, event) => {
  const step = event.shiftKey ? 60 : 0.12, { key } = event;
  const arrow = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[key];
  if (arrow) {
    if (event.shiftKey) return () => viewer.pan(step * arrow[0], step * arrow[1]);
    if (viewer.shown.cameras && arrow[0]) return () => viewer.stepCamera(-arrow[0]);
    return () => viewer.turn(step * arrow[0], step * arrow[1]);
  }
  return {
    s: () => viewer.show({ mode: 'splats' }), m: () => viewer.show({ mode: 'mesh' }),
    l: () => viewer.show({ shade: (viewer.shown.shade + 1) % SHADES.length }),
    w: () => viewer.show({ edges: !viewer.shown.edges }),
    c: () => viewer.show({ cameras: !viewer.shown.cameras }), b: () => viewer.show({ light: !viewer.shown.light }),
    t: () => viewer.show({ turning: !viewer.shown.turning }), p: () => viewer.screenshot(),
    r: () => viewer.reset(), f: () => viewer.fullscreen(), '?': () => viewer.help(), h: () => viewer.help(),
    '+': () => viewer.zoom(0.85), '=': () => viewer.zoom(0.85), '-': () => viewer.zoom(1 / 0.85),
  }[key.toLowerCase()];
};
