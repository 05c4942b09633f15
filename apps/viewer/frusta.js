// The photos' cameras as small pyramids: one flies there on a click.

class Frusta {
  constructor(gl, cameras, length) {
    Object.assign(this, { gl, cameras, length, chosen: -1, pointed: -1 });
    this.lines = makeProgram(gl, LINE_VERTEX, LINE);
    const ends = [], colors = [];
    for (const camera of cameras) {
      const points = this.corners(camera);
      const top = along(along(points[1], 0.5, minus(points[2], points[1])), 0.12, minus(points[1], points[4]));
      const strokes = [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]];
      for (const [a, b] of strokes) ends.push(...points[a], ...points[b]);
      ends.push(...points[1], ...top, ...top, ...points[2]);  // a roof says which way is up
      for (let i = 0; i < 20; i++) colors.push(...(camera.held ? [98, 174, 242, 255] : [238, 142, 84, 255]));
    }
    this.each = 20;
    this.array = gl.createVertexArray();
    gl.bindVertexArray(this.array);
    for (const [location, data, size, type] of [
      [0, new Float32Array(ends), 3, gl.FLOAT], [3, new Uint8Array(colors), 4, gl.UNSIGNED_BYTE]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(location);
      gl.vertexAttribPointer(location, size, type, type === gl.UNSIGNED_BYTE, 0, 0);
    }
  }

  // Eye, then the picture's corners from the top left on clockwise.
  corners({ pose, lens }) {
    const [right, down, forward, eye] = [0, 1, 2, 3].map((c) => [pose[c], pose[4 + c], pose[8 + c]]);
    const far = this.length / Math.hypot(1, lens.w / lens.fx / 2, lens.h / lens.fy / 2);
    const corner = (u, v) => {
      const ray = along(along(forward, (u - lens.cx) / lens.fx, right), (v - lens.cy) / lens.fy, down);
      return along(eye, far, ray);
    };
    return [eye, corner(0, 0), corner(lens.w, 0), corner(lens.w, lens.h), corner(0, lens.h)];
  }

  draw(clip, depthKnown) {
    const { gl, lines: { program, at } } = this;
    gl.useProgram(program);
    gl.bindVertexArray(this.array);
    gl.uniformMatrix4fv(at.clip, false, clip);
    gl.uniform1f(at.pull, 0);
    if (depthKnown) gl.enable(gl.DEPTH_TEST);
    else gl.disable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.uniform4f(at.tint, 0.75, 0.75, 0.75, 0.75);
    this.cameras.forEach((_, i) => {
      if (i !== this.chosen && i !== this.pointed) gl.drawArrays(gl.LINES, i * this.each, this.each);
    });
    gl.uniform4f(at.tint, 1.6, 1.6, 1.6, 1);
    if (this.pointed >= 0 && this.pointed !== this.chosen) gl.drawArrays(gl.LINES, this.pointed * this.each, this.each);
    gl.disable(gl.BLEND);
  }

  // How many of them can be seen.
  inView(view) {
    return this.cameras.filter((camera) => {
      const ray = minus(this.corners(camera)[0], view.eye), z = dot(ray, view.forward);
      const u = view.fx * dot(ray, view.right) / z + view.cx, v = view.fy * dot(ray, view.down) / z + view.cy;
      return z > this.length && u > 0 && v > 0 && u < view.width && v < view.height;
    }).length;
  }

  // The camera drawn nearest to pixel (x, y), within `reach` pixels, or -1. The one looked through is not there.
  at(view, x, y, reach) {
    let best = -1, least = reach;
    this.cameras.forEach((camera, i) => {
      const ray = minus(this.corners(camera)[0], view.eye), z = dot(ray, view.forward);
      if (i === this.chosen || z < 1e-3 * this.length) return;
      const u = view.fx * dot(ray, view.right) / z + view.cx, v = view.fy * dot(ray, view.down) / z + view.cy;
      const away = Math.hypot(u - x, v - y);
      if (away < least) [best, least] = [i, away];
    });
    return best;
  }
}
