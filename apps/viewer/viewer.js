// The viewer: one canvas, its buttons, and what to draw when. Draws only when something changed.

const BACKGROUNDS = { light: [1, 1, 1], dark: [0, 0, 0] };
const SHADES = ['Colour', 'Lit', 'Clay', 'Normals', 'Depth'];
const TURN_SECONDS = 18;  // of the turntable
const SLOW = 34, FAST = 17;  // ms per frame at which the picture is drawn coarser or finer while it moves

class Viewer {
  constructor(root, header) {
    Object.assign(this, { root, header, canvas: root.querySelector('canvas'), embedded: 'embedded' in root.dataset,
                          framed: window.parent !== window });
    this.gl = this.canvas.getContext('webgl2', { alpha: false, antialias: true, powerPreference: 'high-performance' });
    if (!this.gl) throw new Error('This browser has no WebGL2, which the 3D view needs. ' +
      'It is part of current Chrome, Edge, Firefox and Safari; graphics acceleration may be switched off.');
    this.orbit = new Orbit(header);
    this.start = this.orbit.stateOf(header.start.pose, header.start.lens);
    this.orbit.jumpTo(this.start);
    this.shown = { mode: header.splats ? 'splats' : 'mesh', shade: 0, edges: false, cameras: false,
                   light: header.light, camera: -1, turning: false };
    this.movingScale = 1;
    this.last = { time: 0, moved: -1e9, moving: false };
    this.waiting = 0;
  }

  async load(payload) {
    const { header } = this;
    this.splats = header.splats && await unpackSplats(payload, header.splats);
    this.mesh = header.mesh && await unpackMesh(payload, header.mesh);
    this.makeLayers();
    if (this.splats) this.sorter = new Sorter(this.splats.positions, 64 * header.size, (order, direction, ms) => {
      this.splatLayer.setOrder(order, direction);
      this.root.dataset.sortMs = ms.toFixed(2);
      this.invalidate();
    });
    this.listen();
    this.show({});
  }

  makeLayers() {
    const { gl, header } = this;
    this.splatLayer = this.splats && new SplatLayer(gl, this.splats, header);
    this.meshLayer = this.mesh && new MeshLayer(gl, this.mesh);
    this.frusta = header.cameras.length ? new Frusta(gl, header.cameras, 0.09 * this.start.distance) : null;
  }

  listen() {
    this.pointers = new Pointers(this.canvas, this);
    (this.embedded ? this.root : window).addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === 'Escape') { this.help(false); return; }
      const action = keyAction(this, event);
      if (action) { event.preventDefault(); action(); }
    });
    for (const button of this.root.querySelectorAll('[data-key]'))
      button.addEventListener('click', () => keyAction(this, { key: button.dataset.key })());
    for (const button of this.root.querySelectorAll('[data-step]'))
      button.addEventListener('click', () => this.stepCamera(Number(button.dataset.step)));
    this.canvas.addEventListener('pointerdown', () => this.show({ turning: false }));
    if (this.framed) addEventListener('message', (event) => this.heard(event));
    new ResizeObserver(() => this.invalidate()).observe(this.canvas);
    this.canvas.addEventListener('webglcontextlost', (event) => { event.preventDefault(); this.lost = true; });
    this.canvas.addEventListener('webglcontextrestored', () => {
      this.lost = false;
      this.makeLayers();
      this.invalidate();
    });
  }

  // What buttons and keys change.

  show(change) {
    if (change.mode && !this.header[change.mode]) return;
    if (change.cameras !== undefined && !this.frusta) return;
    const { root } = this, appears = change.cameras && !this.shown.cameras;
    const shown = Object.assign(this.shown, change);
    root.classList.toggle('light', shown.light);
    const press = (key, on) => {
      for (const button of root.querySelectorAll(`[data-key="${key}"]`)) button.setAttribute('aria-pressed', on);
    };
    press('s', shown.mode === 'splats');
    press('m', shown.mode === 'mesh');
    press('c', shown.cameras);
    press('w', shown.edges);
    press('l', shown.shade > 0);
    press('t', shown.turning);
    for (const part of root.querySelectorAll('[data-when]')) {
      part.hidden = !part.dataset.when.split(' ').every((word) =>
        ({ mesh: shown.mode === 'mesh', cameras: shown.cameras })[word]);
    }
    root.querySelector('.shade').textContent = SHADES[shown.shade];
    if (appears && this.frusta.inView(this.cssView()) < 3) this.orbit.retreat(2.2 * this.start.distance);
    this.invalidate();
  }

  reset() {
    this.look(-1);
    this.show({ turning: false });
    this.orbit.flyTo(this.start, performance.now());
    this.invalidate();
  }

  look(index) {
    this.shown.camera = index;
    if (this.frusta) this.frusta.chosen = index;
    this.root.querySelector('.photo').textContent = index < 0 ? '' : this.header.cameras[index].name;
  }

  flyToCamera(index, { jump = false } = {}) {
    const { pose, lens } = this.header.cameras[index], state = this.orbit.stateOf(pose, lens);
    this.look(index);
    if (jump) this.orbit.jumpTo(state);
    else this.orbit.flyTo(state, performance.now());
    this.invalidate();
  }

  stepCamera(step) {
    const count = this.header.cameras.length, from = this.shown.camera;
    if (count) this.flyToCamera(from < 0 ? (step > 0 ? 0 : count - 1) : (from + step + count) % count);
  }

  turn(right, down) { this.look(-1); this.orbit.turn(right, down); this.invalidate(); }

  pan(right, down) {
    this.look(-1);
    const { clientWidth, clientHeight } = this.canvas, { lens, distance } = this.orbit.goal;
    const unitsPerPixel = distance / (lens.fy * Math.min(clientWidth / lens.w, clientHeight / lens.h));
    this.orbit.pan(right * unitsPerPixel, down * unitsPerPixel);
    this.invalidate();
  }

  zoom(factor) { this.look(-1); this.orbit.zoom(factor); this.invalidate(); }

  cssView() { return this.orbit.view(this.canvas.clientWidth || 1, this.canvas.clientHeight || 1); }

  pointAt(place) {
    if (!this.frusta || !this.shown.cameras) return;
    const found = place ? this.frusta.at(this.cssView(), ...place, 16) : -1;
    if (found === this.frusta.pointed) return;
    this.frusta.pointed = found;
    this.canvas.classList.toggle('choosing', found >= 0);
    this.canvas.title = found < 0 ? '' : this.header.cameras[found].name;
    this.invalidate();
  }

  choose(x, y) {
    const found = this.frusta && this.shown.cameras ? this.frusta.at(this.cssView(), x, y, 16) : -1;
    if (found >= 0) this.flyToCamera(found);
  }

  centreOn(x, y) {
    const view = this.cssView();
    const depth = (this.shown.mode === 'mesh' ? this.meshLayer : this.splatLayer).depthAt(view, x, y);
    if (depth === null) return;
    const across = along(view.forward, (x - view.cx) / view.fx, view.right);
    this.look(-1);
    this.orbit.centreOn(along(view.eye, depth, along(across, (y - view.cy) / view.fy, view.down)), performance.now());
    this.invalidate();
  }

  fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (this.root.requestFullscreen) this.root.requestFullscreen();
  }

  // What is seen, without the buttons, as a file.
  screenshot() {
    this.draw(1);  // the canvas is read in the same turn, before the browser clears it
    this.canvas.toBlob((blob) => {
      const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(blob), download: 'maquette.png' });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }

  help(open) {
    const panel = this.root.querySelector('.help');
    panel.hidden = open === undefined ? !panel.hidden : !open;
  }

  // Talk with the page around the viewer, which may show another one beside it: where the camera stands, in units of the
  // first view, so that two scenes of other sizes can be looked at as one.

  tell() {
    const view = this.orbit.relativeTo(this.start), now = JSON.stringify(view);
    if (now === this.told) return;
    this.told = now;
    window.parent.postMessage({ maquette: 'view', view }, '*');
  }

  heard({ source, data }) {
    if (source !== window.parent || data?.maquette !== 'look') return;
    if (!this.orbit.lookAs(this.start, data.view)) return;
    this.look(-1);
    this.told = JSON.stringify(this.orbit.relativeTo(this.start));  // what was heard is not told again
    this.invalidate();
  }

  // Drawing.

  invalidate() {
    delete this.root.dataset.ready;
    if (!this.waiting) this.waiting = requestAnimationFrame((time) => this.frame(time));
  }

  frame(time) {
    this.waiting = 0;
    if (this.lost) return;
    const elapsed = this.last.moving ? time - this.last.time : 16;
    if (this.shown.turning) this.orbit.turn(-2 * Math.PI * Math.min(elapsed, 100) / (1000 * TURN_SECONDS), 0);
    const moving = this.orbit.advance(time, elapsed) || this.shown.turning;
    if (this.framed) this.tell();
    if (moving) {
      if (elapsed > SLOW) this.movingScale = Math.max(0.4, 0.85 * this.movingScale);
      if (elapsed < FAST) this.movingScale = Math.min(1, 1.05 * this.movingScale);
      this.last.moved = time;
    }
    Object.assign(this.last, { time, moving });
    // Full sharpness returns a moment after the last movement, so that it does not flicker between two drags.
    const still = !moving && (time - this.last.moved > 180 || this.movingScale === 1);
    this.draw(still ? 1 : this.movingScale);
    if (moving || !still) this.invalidate();
    else if (this.orderIsRight()) this.settle();
  }

  orderIsRight() {
    return this.shown.mode !== 'splats' ||
      Boolean(this.splatLayer.sorted) && dot(this.splatLayer.sorted, this.direction) > 1 - 1e-12;
  }

  settle() {
    const { eye } = this.cssView();
    this.root.dataset.eye = eye.map((value, i) => value + this.header.centre[i]).join(' ');
    this.root.dataset.ready = 'true';
  }

  draw(scale) {
    const { gl, canvas, shown } = this, ratio = Math.min(2, devicePixelRatio || 1) * scale;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const view = this.orbit.view(width, height), background = BACKGROUNDS[shown.light ? 'light' : 'dark'];
    const { distance } = this.orbit.now, clip = clipFromScene(view, 2e-3 * distance, 2 * distance + 400 * this.header.size);
    if (shown.mode === 'splats') {
      this.direction = view.forward;
      if (!this.orderIsRight()) this.sorter.want(view.forward);
      this.splatLayer.draw(view, background);
    } else {
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.viewport(0, 0, width, height);
      gl.clearColor(...background, 1);
      gl.enable(gl.DEPTH_TEST);
      gl.disable(gl.BLEND);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      const range = [distance - 1.5 * this.header.size, distance + 1.5 * this.header.size];
      this.meshLayer.draw(view, clip, { ...shown, up: this.orbit.up, range });
    }
    if (shown.cameras) this.frusta.draw(clip, shown.mode === 'mesh');
    this.frameOf(shown.camera);
  }

  // The edge of the photo that is looked through.
  frameOf(index) {
    const frame = this.root.querySelector('.frame');
    frame.hidden = index < 0;
    if (frame.hidden) return;
    const { clientWidth: W, clientHeight: H } = this.canvas, { w, h } = this.header.cameras[index].lens;
    const s = Math.min(W / w, H / h);
    Object.assign(frame.style, { width: `${s * w}px`, height: `${s * h}px`,
                                 left: `${(W - s * w) / 2}px`, top: `${(H - s * h) / 2}px` });
  }

  // #mode=mesh&camera=3&background=light&shade=clay&edges&cameras&ui=none: a link to a view.
  applyHash(hash) {
    const asked = new URLSearchParams(hash.slice(1));
    if (asked.get('ui') === 'none') this.root.classList.add('bare');
    if (asked.has('mode')) this.show({ mode: asked.get('mode') === 'mesh' ? 'mesh' : 'splats' });
    if (asked.has('background')) this.show({ light: asked.get('background') === 'light' });
    if (asked.has('shade')) this.show({ shade: Math.max(0, SHADES.findIndex((name) => name.toLowerCase() === asked.get('shade'))) });
    if (asked.has('edges')) this.show({ edges: true });
    if (asked.has('cameras')) this.show({ cameras: true });
    const camera = Number(asked.get('camera') ?? -1);
    if (this.header.cameras[camera]) this.flyToCamera(camera, { jump: true });
  }
}

const openViewer = async (root) => {
  const message = root.querySelector('.message');
  const say = (text) => { message.textContent = text; message.hidden = !text; };
  try {
    say('Unpacking …');
    await new Promise((then) => setTimeout(then));  // lets the words be painted
    const header = JSON.parse(root.querySelector('[data-part="header"]').textContent);
    const viewer = new Viewer(root, header);
    if (typeof DecompressionStream === 'undefined')
      throw new Error('This browser is too old for the 3D view: it cannot unpack the data (DecompressionStream).');
    const data = root.querySelector('[data-part="data"]'), payload = fromBase64(data.textContent);
    data.remove();
    await viewer.load(payload);
    say('');
    if (viewer.embedded) return;
    viewer.applyHash(location.hash);
    if (viewer.framed) window.parent.postMessage({ maquette: 'ready' }, '*');
    else viewer.canvas.focus();
  } catch (error) {
    say(error.message);
    root.dataset.failed = error.message;
  }
};

for (const root of document.querySelectorAll('.maquette-viewer')) {
  const start = root.querySelector('.start');
  if (!start) openViewer(root);
  else start.addEventListener('click', () => {
    root.querySelector('.poster').remove();
    openViewer(root).then(() => root.querySelector('canvas').focus({ preventScroll: true }));
  }, { once: true });
}
