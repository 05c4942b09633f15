// Where the viewer stands: a point to turn around, two angles about the scene's up, a roll, a distance, and a lens.
//
// The lens is a reference picture (width w, height h, focal lengths and principal point in its pixels, as scene.cameras
// has them) that is always wholly inside the canvas: a photo's camera then shows exactly the photo's part of the scene.

const FLIGHT = 750;   // ms
const FOLLOW = 0.02;  // per ms; how fast the view follows the hand

class Orbit {
  constructor({ up, focus, size }) {
    Object.assign(this, { focus, size });
    this.up = unit(up);
    // Any two directions that complete `up` to a right-handed frame; azimuth 0 looks along the first.
    const helper = Math.abs(this.up[0]) < 0.9 ? [1, 0, 0] : [0, 1, 0];
    this.e1 = unit(along(helper, -dot(helper, this.up), this.up));
    this.e2 = cross(this.up, this.e1);
    this.now = null;
    this.goal = null;
    this.flight = null;
  }

  // The state that sees exactly as a camera: pose is c2w by rows [12].
  stateOf(pose, lens) {
    const [right, down, forward, eye] = [0, 1, 2, 3].map((c) => [pose[c], pose[4 + c], pose[8 + c]]);
    const [f1, f2, f3] = [this.e1, this.e2, this.up].map((axis) => dot(forward, axis));
    const across = Math.hypot(f1, f2);
    // Straight up or down the azimuth is that of the picture's right edge, and there is no roll.
    const azimuth = across > 1e-4 ? Math.atan2(f2, f1) : Math.atan2(dot(right, this.e1), -dot(right, this.e2));
    const flat = along(along([0, 0, 0], Math.sin(azimuth), this.e1), -Math.cos(azimuth), this.e2);
    const roll = Math.atan2(-dot(down, flat), dot(right, flat));
    const distance = Math.max(0.1 * this.size, dot(minus(this.focus, eye), forward));
    return { azimuth, height: Math.atan2(f3, across), roll, distance, target: along(eye, distance, forward), lens };
  }

  // Axes of a state's camera in the scene.
  static axes({ azimuth, height, roll }, { e1, e2, up }) {
    const flat = along(along([0, 0, 0], Math.cos(azimuth), e1), Math.sin(azimuth), e2);
    const forward = along(along([0, 0, 0], Math.cos(height), flat), Math.sin(height), up);
    const level = along(along([0, 0, 0], Math.sin(azimuth), e1), -Math.cos(azimuth), e2);
    const below = cross(forward, level);
    const right = along(along([0, 0, 0], Math.cos(roll), level), Math.sin(roll), below);
    return { right, down: cross(forward, right), forward };
  }

  // The camera over a picture of this size, as the layers want it.
  view(width, height) {
    const axes = Orbit.axes(this.now, this), { target, distance, lens } = this.now;
    const s = Math.min(width / lens.w, height / lens.h);
    return {
      ...axes, eye: along(target, -distance, axes.forward), width, height, fx: s * lens.fx, fy: s * lens.fy,
      cx: (width - s * lens.w) / 2 + s * lens.cx, cy: (height - s * lens.h) / 2 + s * lens.cy,
    };
  }

  jumpTo(state) {
    this.now = structuredClone(state);
    this.goal = structuredClone(state);
    this.flight = null;
  }

  flyTo(state, time) {
    if (matchMedia('(prefers-reduced-motion: reduce)').matches) { this.jumpTo(state); return; }
    const from = structuredClone(this.now), to = structuredClone(state), whole = 2 * Math.PI;
    for (const angle of ['azimuth', 'roll'])
      from[angle] = to[angle] + ((from[angle] - to[angle] + 3 * Math.PI) % whole + whole) % whole - Math.PI;
    this.flight = { from, to, start: time };
    this.goal = structuredClone(state);
  }

  // Moves on to `time` ms; whether it is still on the way.
  advance(time, elapsed) {
    if (this.flight) {
      const { from, to, start } = this.flight, t = Math.min(1, Math.max(0, (time - start) / FLIGHT));
      Orbit.mix(this.now, from, to, t * t * (3 - 2 * t));
      if (t < 1) return true;
      this.jumpTo(to);
      return false;
    }
    const { now, goal } = this;
    const rest = Math.max(
      Math.abs(goal.azimuth - now.azimuth), Math.abs(goal.height - now.height), Math.abs(goal.roll - now.roll),
      Math.abs(Math.log(goal.distance / now.distance)), Math.hypot(...minus(goal.target, now.target)) / goal.distance);
    if (rest === 0) return false;
    Orbit.mix(now, now, goal, rest < 2e-4 ? 1 : 1 - Math.exp(-FOLLOW * elapsed));
    if (rest < 2e-4) this.now = structuredClone(goal);
    return true;
  }

  static mix(out, a, b, t) {
    const between = (x, y) => x + t * (y - x);
    for (const name of ['azimuth', 'height', 'roll']) out[name] = between(a[name], b[name]);
    out.distance = Math.exp(between(Math.log(a.distance), Math.log(b.distance)));
    out.target = a.target.map((value, i) => between(value, b.target[i]));
    // Lenses of pictures of different shapes meet at their heights.
    const k = b.lens.h / a.lens.h;
    out.lens = Object.fromEntries(Object.keys(b.lens).map((name) => [name, between(k * a.lens[name], b.lens[name])]));
  }

  // What hands do; each works on the goal, which the view follows.

  take() {
    if (this.flight) this.jumpTo(this.now);
    return this.goal;
  }

  turn(right, down) {
    const goal = this.take();
    goal.azimuth -= right;
    goal.height = Math.max(-1.55, Math.min(1.55, goal.height - down));
    goal.roll *= Math.exp(-2 * Math.hypot(right, down));  // a photo's tilt levels out as the hand turns
  }

  pan(right, down) {  // in pixels of a picture of this height
    const goal = this.take(), { right: r, down: d } = Orbit.axes(goal, this);
    goal.target = along(along(goal.target, -right, r), -down, d);
  }

  zoom(factor) {
    const goal = this.take();
    goal.distance = Math.max(1e-3 * this.size, Math.min(100 * this.size, goal.distance * factor));
  }

  // Steps back to this distance, or stays where it is farther.
  retreat(distance) {
    const goal = this.take();
    goal.distance = Math.max(goal.distance, distance);
  }

  // Brings a point to the middle, at the depth at which it is, and turns around it from now on.
  centreOn(point, time) {
    const goal = structuredClone(this.take()), { forward } = Orbit.axes(goal, this);
    const eye = along(goal.target, -goal.distance, forward);
    this.flyTo({ ...goal, target: point, distance: dot(minus(point, eye), forward) }, time);
  }

  // The goal as seen from a state: angles from its own, lengths in its distance.
  relativeTo(state) {
    const { goal } = this, shift = minus(goal.target, state.target).map((value) => value / state.distance);
    return { azimuth: goal.azimuth - state.azimuth, height: goal.height - state.height, roll: goal.roll - state.roll,
             distance: goal.distance / state.distance, shift: [this.e1, this.e2, this.up].map((axis) => dot(shift, axis)) };
  }

  // Stands as `relativeTo` said elsewhere; whether that was sound.
  lookAs(state, view) {
    const { azimuth, height, roll, distance, shift } = view ?? {};
    if (![azimuth, height, roll, distance, ...shift ?? [NaN]].every(Number.isFinite) || shift.length !== 3 || distance <= 0)
      return false;
    const axes = [this.e1, this.e2, this.up];
    const target = shift.reduce((point, value, i) => along(point, value * state.distance, axes[i]), state.target);
    this.jumpTo({ ...state, azimuth: state.azimuth + azimuth, height: state.height + height, roll: state.roll + roll,
                  distance: state.distance * distance, target });
    return true;
  }
}
