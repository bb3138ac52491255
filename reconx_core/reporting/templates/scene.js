// The page of a scene: Gaussians drawn as reconx_core/rasterize draws them, cameras to click on, camera paths.
// Cameras are OpenCV's (x right, y down, z ahead): `eye` in world, the rows of `turn` are the camera's axes in world, and
// `lens` (fx, fy, cx, cy) is in pixels of a photo.
"use strict";
const SIDE = 2048;        // texels in a row of the textures
const NEAR = 0.01, BLUR = 0.3, MARGIN = 0.15;  // as in reconx_core/rasterize/conventions.py
const about = JSON.parse(document.getElementById("about").textContent);
const $ = id => document.getElementById(id);
const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = a => add([0, 0, 0], a, 1 / Math.hypot(...a));
const median = values => values.sort((a, b) => a - b)[values.length >> 1];

const VERTEX = `#version 300 es
precision highp float; precision highp int; precision highp sampler2D;
uniform sampler2D places, turns, shapes, colours;
uniform mat3 view;
uniform vec3 eye;
uniform vec2 focal, centre, size, scales, base, rest;
uniform float blur;
const int SIDE = ${SIDE}, TERMS = ${(about.degree + 1) ** 2};
in uint index;
out vec2 place;
out vec4 paint;
vec4 at(sampler2D map, int i) { return texelFetch(map, ivec2(i % SIDE, i / SIDE), 0); }
vec3 colour(int i, vec3 d) {
  float x = d.x, y = d.y, z = d.z, zz = z * z, c = x * x - y * y, s = 2. * x * y, ring = .4570457994644658 - 2.285228997322329 * zz;
  float basis[16] = float[16](.28209479177387814,
    -.48860251190292 * y, .48860251190292 * z, -.48860251190292 * x,
    .5462742152960395 * s, -1.092548430592079 * z * y, .9461746957575601 * zz - .3153915652525201, -1.092548430592079 * z * x,
    .5462742152960395 * c, -.5900435899266435 * (x * s + y * c), 1.445305721320277 * z * s, ring * y,
    z * (1.865881662950577 * zz - 1.119528997770346), ring * x, 1.445305721320277 * z * c, -.5900435899266435 * (x * c - y * s));
  vec3 sum = .5 + basis[0] * mix(vec3(base.x), vec3(base.y), at(colours, i * TERMS).rgb);
  for (int k = 1; k < TERMS; k++) sum += basis[k] * mix(vec3(rest.x), vec3(rest.y), at(colours, i * TERMS + k).rgb);
  return max(sum, 0.);
}
void main() {
  int i = int(index);
  vec3 away = at(places, i).xyz - eye, p = view * away;
  vec4 shape = at(shapes, i);
  gl_Position = vec4(0, 0, 2, 1);  // outside, unless it is seen
  if (p.z < ${NEAR} || shape.a < 1. / 255.) return;
  vec4 q = normalize(at(turns, i) * 255. - 128.);
  float w = q.x, x = q.y, y = q.z, z = q.w;
  mat3 turn = mat3(1. - 2. * (y * y + z * z), 2. * (x * y + w * z), 2. * (x * z - w * y),
    2. * (x * y - w * z), 1. - 2. * (x * x + z * z), 2. * (y * z + w * x),
    2. * (x * z + w * y), 2. * (y * z - w * x), 1. - 2. * (x * x + y * y));
  vec3 s = exp(mix(vec3(scales.x), vec3(scales.y), shape.rgb));
  mat3 axes = view * turn * mat3(s.x, 0, 0, 0, s.y, 0, 0, 0, s.z);
  vec2 beyond = ${MARGIN} * size, slope = clamp(p.xy / p.z, (-centre - beyond) / focal, (size - centre + beyond) / focal);
  vec2 f = focal / p.z;
  vec3 across = f.x * (transpose(axes)[0] - slope.x * transpose(axes)[2]);
  vec3 down = f.y * (transpose(axes)[1] - slope.y * transpose(axes)[2]);
  float a = dot(across, across) + blur, b = dot(across, down), c = dot(down, down) + blur;
  float middle = (a + c) / 2., half_gap = length(vec2((a - c) / 2., b));
  float angle = half_gap > 1e-6 * middle ? atan(2. * b, a - c) / 2. : 0.;
  vec2 axis = vec2(cos(angle), sin(angle));
  place = (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2. - 1.) * sqrt(2. * log(255. * shape.a));
  vec2 offset = place.x * sqrt(middle + half_gap) * axis
    + place.y * sqrt(max(middle - half_gap, blur)) * vec2(-axis.y, axis.x);
  paint = vec4(colour(i, normalize(away)), shape.a);
  gl_Position = vec4((focal * p.xy / p.z + centre + offset) / size * vec2(2, -2) + vec2(-1, 1), 0, 1);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec2 place;
in vec4 paint;
out vec4 colour;
void main() {
  float alpha = min(.999, paint.a * exp(-.5 * dot(place, place)));
  if (alpha < 1. / 255.) discard;
  colour = vec4(paint.rgb * alpha, alpha);
}`;
const COPY_VERTEX = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4. - 1., 0, 1); }`;
const COPY_FRAGMENT = `#version 300 es
precision highp float;
uniform highp sampler2D picture;
out vec4 colour;
void main() { colour = vec4(texelFetch(picture, ivec2(gl_FragCoord.xy), 0).rgb, 1); }`;

// ---- the file: see reconx_core/reporting/packed.py

async function unpack() {
  const text = atob($("splats").textContent.trim()), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = await new Response(stream).arrayBuffer();
  const {count, group} = about, groups = Math.ceil(count / group), terms = (about.degree + 1) ** 2;
  const bounds = new Float32Array(data, 0, groups * 6), rows = new Uint8Array(data, groups * 24);
  const plane = k => rows.subarray(k * count, (k + 1) * count);
  const places = new Float32Array(3 * count);
  for (let axis = 0; axis < 3; axis++) {
    const high = plane(2 * axis), low = plane(2 * axis + 1);
    for (let i = 0; i < count; i++) {
      const at = 6 * Math.floor(i / group) + axis, share = (256 * high[i] + low[i]) / 65535;
      places[3 * i + axis] = bounds[at] + share * (bounds[at + 3] - bounds[at]);
    }
  }
  const mixed = planes => {
    const texels = new Uint8Array(4 * count);
    planes.forEach((values, k) => { for (let i = 0; i < count; i++) texels[4 * i + k] = values[i]; });
    return texels;
  };
  const colours = new Uint8Array(4 * count * terms);
  for (let k = 0; k < 3 * terms; k++) {
    const values = plane(14 + k), place = 4 * Math.floor(k / 3) + k % 3;
    for (let i = 0; i < count; i++) colours[4 * terms * i + place] = values[i];
  }
  return {places, colours, turns: mixed([9, 10, 11, 12].map(plane)), shapes: mixed([6, 7, 8, 13].map(plane)), opacity: plane(13)};
}

// ---- drawing

/** Indices of the Gaussians before the camera, the farthest first: sorted by the bits of their depth, 16 at a time. */
function order(places, eye, ahead, near) {
  const n = places.length / 3, depth = new Float32Array(n), bits = new Uint32Array(depth.buffer);
  let from = new Uint32Array(n), to = new Uint32Array(n), count = 0;
  for (let i = 0; i < n; i++) {
    const z = (places[3 * i] - eye[0]) * ahead[0] + (places[3 * i + 1] - eye[1]) * ahead[1]
      + (places[3 * i + 2] - eye[2]) * ahead[2];
    depth[i] = z;
    if (z >= near) from[count++] = i;
  }
  for (const shift of [0, 16]) {
    const starts = new Uint32Array(65537);
    for (let i = 0; i < count; i++) starts[65536 - ((bits[from[i]] >>> shift) & 65535)]++;
    for (let k = 1; k < 65537; k++) starts[k] += starts[k - 1];
    for (let i = 0; i < count; i++) to[starts[65535 - ((bits[from[i]] >>> shift) & 65535)]++] = from[i];
    [from, to] = [to, from];
  }
  return from.subarray(0, count);
}

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS) && !gl.isContextLost())
    throw new Error(gl.getProgramInfoLog(made) + gl.getAttachedShaders(made).map(s => gl.getShaderInfoLog(s)).join(""));
  return made;
}

function texture(gl, slot, values, float, per) {
  gl.activeTexture(gl.TEXTURE0 + slot);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  for (const side of ["MIN", "MAG"]) gl.texParameteri(gl.TEXTURE_2D, gl[`TEXTURE_${side}_FILTER`], gl.NEAREST);
  const texels = values.length / per, height = Math.max(1, Math.ceil(texels / SIDE));
  const padded = float ? new Float32Array(4 * SIDE * height) : new Uint8Array(4 * SIDE * height);
  if (per === 4) padded.set(values);
  else for (let i = 0; i < texels; i++) for (let k = 0; k < per; k++) padded[4 * i + k] = values[per * i + k];
  gl.texImage2D(gl.TEXTURE_2D, 0, float ? gl.RGBA32F : gl.RGBA8, SIDE, height, 0, gl.RGBA, float ? gl.FLOAT : gl.UNSIGNED_BYTE, padded);
}

/** A painter for a canvas: `draw(pose, order)` shows the Gaussians of `order` from a pose. */
function painter(canvas, splats) {
  const gl = canvas.getContext("webgl2", {antialias: false, alpha: false, powerPreference: "high-performance"});
  if (!gl) return null;
  // Many faint layers, each rounded to 8 bits, would leave bands.
  const fine = gl.getExtension("EXT_color_buffer_float") || gl.getExtension("EXT_color_buffer_half_float");
  const paint = program(gl, VERTEX, FRAGMENT), copy = program(gl, COPY_VERTEX, COPY_FRAGMENT);
  const place = name => gl.getUniformLocation(paint, name);
  [["places", splats.places, true, 3], ["turns", splats.turns, false, 4], ["shapes", splats.shapes, false, 4],
    ["colours", splats.colours, false, 4]].forEach(([name, values, float, per], slot) => {
    texture(gl, slot, values, float, per);
    gl.useProgram(paint);
    gl.uniform1i(place(name), slot);
  });
  for (const name of ["scales", "base", "rest"]) gl.uniform2fv(place(name), about[name]);
  gl.useProgram(copy);
  gl.uniform1i(gl.getUniformLocation(copy, "picture"), 4);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  const slot = gl.getAttribLocation(paint, "index"), gathered = gl.createFramebuffer(), picture = gl.createTexture();
  gl.enableVertexAttribArray(slot);
  gl.vertexAttribIPointer(slot, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(slot, 1);
  let shown = null, width = 0, height = 0;

  function resize() {
    [width, height] = [canvas.width, canvas.height];
    gl.activeTexture(gl.TEXTURE4);
    gl.bindTexture(gl.TEXTURE_2D, picture);
    for (const side of ["MIN", "MAG"]) gl.texParameteri(gl.TEXTURE_2D, gl[`TEXTURE_${side}_FILTER`], gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, fine ? gl.RGBA16F : gl.RGBA8, width, height, 0, gl.RGBA, fine ? gl.HALF_FLOAT : gl.UNSIGNED_BYTE, null);
    gl.bindFramebuffer(gl.FRAMEBUFFER, gathered);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, picture, 0);
  }
  return (pose, sorted) => {
    if (width !== canvas.width || height !== canvas.height) resize();
    if (shown !== sorted) gl.bufferData(gl.ARRAY_BUFFER, sorted, gl.DYNAMIC_DRAW);
    shown = sorted;
    const {focal, centre, scale} = lensOn(pose.lens, width, height);
    gl.viewport(0, 0, width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, gathered);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.useProgram(paint);
    gl.uniformMatrix3fv(place("view"), true, pose.turn.flat());
    gl.uniform3fv(place("eye"), pose.eye);
    gl.uniform2fv(place("focal"), focal);
    gl.uniform2fv(place("centre"), centre);
    gl.uniform2f(place("size"), width, height);
    // Gaussians were fitted with this blur at the photos' size; a larger picture of the same is as much larger.
    gl.uniform1f(place("blur"), BLUR * Math.max(1, scale * scale));
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, sorted.length);
    gl.disable(gl.BLEND);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.useProgram(copy);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  };
}

/** A photo's lens on a picture of another size, in which the whole photo lies as large as it can. */
function lensOn([fx, fy, cx, cy], width, height) {
  const scale = Math.min(width / about.width, height / about.height);
  const centre = [scale * cx + (width - scale * about.width) / 2, scale * cy + (height - scale * about.height) / 2];
  return {focal: [scale * fx, scale * fy], centre, scale};
}

// ---- poses

const cameras = about.cameras.map(({name, lens, pose, photo}) => ({
  name, lens, photo, eye: [pose[0][3], pose[1][3], pose[2][3]], turn: [0, 1, 2].map(k => [pose[0][k], pose[1][k], pose[2][k]]),
}));

function rotated(vector, axis, angle) {
  const c = Math.cos(angle), s = Math.sin(angle);
  return add(add(add([0, 0, 0], vector, c), cross(axis, vector), s), axis, dot(axis, vector) * (1 - c));
}

/** The pose turned about an axis through `around`. */
function turned(pose, axis, angle, around) {
  return {...pose, turn: pose.turn.map(row => rotated(row, axis, angle)),
    eye: add(around, rotated(add(pose.eye, around, -1), axis, angle))};
}

function quaternion(turn) {  // wxyz, of the rotation from camera to world
  const [r, d, a] = turn, m = [[r[0], d[0], a[0]], [r[1], d[1], a[1]], [r[2], d[2], a[2]]];
  const options = [[1 + m[0][0] + m[1][1] + m[2][2], m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]],
    [m[2][1] - m[1][2], 1 + m[0][0] - m[1][1] - m[2][2], m[0][1] + m[1][0], m[0][2] + m[2][0]],
    [m[0][2] - m[2][0], m[0][1] + m[1][0], 1 - m[0][0] + m[1][1] - m[2][2], m[1][2] + m[2][1]],
    [m[1][0] - m[0][1], m[0][2] + m[2][0], m[1][2] + m[2][1], 1 - m[0][0] - m[1][1] + m[2][2]]];
  const best = options.reduce((x, y) => Math.hypot(...y) > Math.hypot(...x) ? y : x), length = Math.hypot(...best);
  return best.map(value => value / length);
}

function axesOf([w, x, y, z]) {  // the camera's axes in world: the columns of the rotation
  return [[1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
    [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
    [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]];
}

function between(a, b, share) {
  const p = quaternion(a.turn), q = quaternion(b.turn);
  let cosine = p.reduce((sum, value, k) => sum + value * q[k], 0);
  const sign = cosine < 0 ? -1 : 1, angle = Math.acos(Math.min(1, Math.abs(cosine)));
  const [u, v] = angle < 1e-4 ? [1 - share, share] : [Math.sin((1 - share) * angle), Math.sin(share * angle)];
  const mixed = p.map((value, k) => u * value + sign * v * q[k]), length = Math.hypot(...mixed);
  return {turn: axesOf(mixed.map(value => value / length)), eye: add(add([0, 0, 0], a.eye, 1 - share), b.eye, share),
    lens: a.lens.map((value, k) => (1 - share) * value + share * b.lens[k])};
}

/** A place on the path of keyframes: a smooth curve (Catmull and Rom's) through the eyes. `at` goes from 0 to their number - 1. */
function onPath(frames, at) {
  const i = Math.min(Math.floor(at), frames.length - 2), t = at - i;
  if (frames.length < 2) return frames[0];
  const [p, q] = [frames[i].eye, frames[i + 1].eye];
  const before = i > 0 ? frames[i - 1].eye : add(add([0, 0, 0], p, 2), q, -1);
  const after = i + 2 < frames.length ? frames[i + 2].eye : add(add([0, 0, 0], q, 2), p, -1);
  const eye = [0, 1, 2].map(k => p[k] + t / 2 * (q[k] - before[k]
    + t * (2 * before[k] - 5 * p[k] + 4 * q[k] - after[k] + t * (3 * (p[k] - q[k]) + after[k] - before[k]))));
  return {...between(frames[i], frames[i + 1], t), eye};
}

/** The keyframes and the path through them as nerfstudio's viewer writes them, in the frame of the given cameras. */
function pathFile(frames, seconds, fps = 24) {
  const aspect = about.width / about.height, degrees = 180 / Math.PI;
  const fov = pose => 2 * Math.atan(about.height / 2 / pose.lens[1]) * degrees;
  const matrix = ({turn: [r, d, a], eye}) => [0, 1, 2].flatMap(k => [r[k], -d[k], -a[k], eye[k] + about.origin[k]]).concat(0, 0, 0, 1);
  const count = frames.length < 2 ? 1 : Math.max(2, Math.round(seconds * fps));
  const path = Array.from({length: count}, (_, i) => onPath(frames, count < 2 ? 0 : i / (count - 1) * (frames.length - 1)));
  return {
    keyframes: frames.map(pose => ({matrix: matrix(pose), fov: fov(pose), aspect, override_transition_enabled: false, override_transition_sec: null})),
    default_fov: fov(frames[0]), default_transition_sec: seconds / Math.max(1, frames.length - 1),
    camera_type: "perspective", render_height: about.height, render_width: about.width, fps, seconds, is_cycle: false, smoothness_value: 0,
    camera_path: path.map(pose => ({camera_to_world: matrix(pose), fov: fov(pose), aspect})),
  };
}

// ---- the page

async function start() {
  const splats = await unpack(), canvas = $("picture"), draw = painter(canvas, splats);
  if (!draw) throw new Error("This browser shows no WebGL 2, which the scene needs. The photos are at hand.");
  const marks = $("marks"), ink = marks.getContext("2d"), frames = [], held = new Set();
  let pose = cameras[0] ?? about.start, sorted = new Uint32Array(0), dirty = true, busy = false, moving = null, beside = -1, at = -1;
  const embedded = window.parent !== window;
  document.body.classList.toggle("bare", location.hash === "#bare");  // the picture alone

  // Sorting, beside the page's own thread.
  const code = `${order}; let places; onmessage = ({data}) => { if (data.places) { places = data.places; return; }
    const sorted = order(places, data.eye, data.ahead, ${NEAR}).slice(); postMessage(sorted, [sorted.buffer]); };`;
  const worker = new Worker(URL.createObjectURL(new Blob([code], {type: "text/javascript"})));
  worker.postMessage({places: splats.places});
  let asked = null;
  worker.onmessage = ({data}) => { sorted = data; busy = false; dirty = true; };
  function sort() {
    if (busy || asked && dot(asked.turn[2], pose.turn[2]) > 0.9999999 && Math.hypot(...add(asked.eye, pose.eye, -1)) < 1e-5 * about.unit) return;
    [busy, asked] = [true, pose];
    worker.postMessage({eye: pose.eye, ahead: pose.turn[2]});
  }

  /** The picture from a pose as a PNG's data URL, in the photos' size unless told otherwise. */
  function picture(from = pose, width = about.width, height = about.height) {
    const before = [canvas.width, canvas.height];
    [canvas.width, canvas.height] = [width, height];
    draw(from, order(splats.places, from.eye, from.turn[2], NEAR));
    const url = canvas.toDataURL();
    [canvas.width, canvas.height] = before;
    dirty = true;
    return url;
  }

  const pixels = () => [marks.clientWidth, marks.clientHeight];
  function project(place) {
    const [w, h] = pixels(), {focal, centre} = lensOn(pose.lens, w, h), away = add(place, pose.eye, -1);
    const z = dot(pose.turn[2], away);
    return z < NEAR ? null : [0, 1].map(k => focal[k] * dot(pose.turn[k], away) / z + centre[k]);
  }
  /** How far away is what one sees in the middle. */
  function distance() {
    const [w, h] = pixels(), {focal, centre} = lensOn(pose.lens, w, h), found = [], n = about.count, step = Math.max(1, n >> 14);
    for (let i = 0; i < n; i += step) {
      if (splats.opacity[i] < 100) continue;
      const away = [0, 1, 2].map(k => splats.places[3 * i + k] - pose.eye[k]), z = dot(pose.turn[2], away);
      if (z < NEAR) continue;
      const x = focal[0] * dot(pose.turn[0], away) / z + centre[0] - w / 2, y = focal[1] * dot(pose.turn[1], away) / z + centre[1] - h / 2;
      if (Math.hypot(x, y) < 0.15 * Math.min(w, h)) found.push(z);
    }
    return found.length ? median(found) : about.unit;
  }

  function frustum(camera, size) {
    const [fx, fy, cx, cy] = camera.lens, corner = (u, v) => {
      const ray = [(u * about.width - cx) / fx, (v * about.height - cy) / fy, 1];
      return ray.reduce((sum, value, k) => add(sum, camera.turn[k], size * value), camera.eye);
    };
    return [corner(0, 0), corner(1, 0), corner(1, 1), corner(0, 1)];
  }
  function line(points, closed = false) {
    const seen = points.map(project);
    if (seen.some(point => !point)) return;
    ink.beginPath();
    seen.forEach(point => ink.lineTo(...point));
    if (closed) ink.closePath();
    ink.stroke();
  }
  function drawMarks() {
    const [w, h] = pixels(), ratio = devicePixelRatio;
    if (marks.width !== Math.round(w * ratio) || marks.height !== Math.round(h * ratio)) [marks.width, marks.height] = [Math.round(w * ratio), Math.round(h * ratio)];
    ink.setTransform(ratio, 0, 0, ratio, 0, 0);
    ink.clearRect(0, 0, w, h);
    if (!$("show").checked) return;
    for (const [poses, colour] of [[cameras, "#ff6a4d"], [frames, "#5fb0ff"]]) {
      [ink.strokeStyle, ink.lineWidth] = [colour, 1.5];
      for (const camera of poses) {
        if (Math.hypot(...add(camera.eye, pose.eye, -1)) < 0.01 * about.unit) continue;
        const corners = frustum(camera, 0.15 * about.unit);
        line(corners, true);
        corners.forEach(corner => line([camera.eye, corner]));
      }
    }
    for (let i = 0; frames.length > 1 && i < 20 * (frames.length - 1); i++) line([onPath(frames, i / 20).eye, onPath(frames, (i + 1) / 20).eye]);
  }

  function nearest() {
    const far = camera => Math.hypot(...add(camera.eye, pose.eye, -1)) / about.unit + 1 - dot(camera.turn[2], pose.turn[2]);
    return cameras.reduce((best, camera, i) => best < 0 || far(camera) < far(cameras[best]) ? i : best, -1);
  }
  function showPhoto() {
    const i = nearest();
    const off = (a, b) => Math.hypot(...add(a, b, -1));  // axes are units in single precision only: no product of theirs is 1
    at = i >= 0 && off(cameras[i].eye, pose.eye) < 1e-6 * about.unit && off(cameras[i].turn[2], pose.turn[2]) < 1e-5 ? i : -1;
    placeWipe();
    if (i === beside) return;
    beside = i;
    $("photo").src = $("over").src = cameras[i].photo ?? "";
    $("name").textContent = cameras[i].name;
    document.querySelectorAll("#photos button").forEach((button, k) => button.classList.toggle("near", k === i));
  }
  /** The photo over the picture, as far as the slider goes; only where the picture is the camera's. */
  function placeWipe() {
    const [w, h] = pixels(), {scale} = lensOn(pose.lens, w, h), over = $("over"), share = +$("wipe").value;
    $("wipe").disabled = at < 0;
    over.hidden = at < 0 || share === 0;
    Object.assign(over.style, {width: `${scale * about.width}px`, height: `${scale * about.height}px`, left: `${(w - scale * about.width) / 2}px`,
      top: `${(h - scale * about.height) / 2}px`, clipPath: `inset(0 ${100 - share}% 0 0)`});
  }

  function set(next, own = true) {
    pose = next;
    dirty = true;
    if (own && embedded) parent.postMessage({reconx: relative()}, "*");
  }
  function go(next, seconds = 0.7) {
    moving = {from: pose, to: next, start: performance.now(), seconds, path: share => share >= 1 ? next : between(moving.from, next, share * share * (3 - 2 * share))};
  }
  function play() {
    const seconds = +$("seconds").value, route = [...frames];
    if (route.length > 1) moving = {start: performance.now(), seconds, path: share => onPath(route, share * (route.length - 1))};
  }
  /** The pose beside the nearest camera, for a page of the same photos in which the world may have another frame and unit. */
  function relative() {
    const near = cameras[nearest()];
    if (!near) return {pose};
    const into = vector => near.turn.map(row => dot(row, vector));
    return {camera: near.name, turn: pose.turn.map(into), eye: into(add(pose.eye, near.eye, -1)).map(value => value / about.unit), lens: pose.lens};
  }
  function adopt(said) {
    const near = cameras.find(camera => camera.name === said.camera);
    if (!near) return;
    const outOf = vector => near.turn.reduce((sum, row, k) => add(sum, row, vector[k]), [0, 0, 0]);
    moving = null;
    set({turn: said.turn.map(outOf), eye: add(near.eye, outOf(said.eye), about.unit), lens: near.lens}, false);
  }
  addEventListener("message", ({data}) => { if (data?.reconx?.camera !== undefined) adopt(data.reconx); });

  // Fingers and mouse: one orbits, two (or the right button) move and go nearer.
  const fingers = new Map();
  let depth = 1, travelled = 0;
  const orbit = (dx, dy) => {
    const middle = add(pose.eye, pose.turn[2], depth), tilt = Math.asin(Math.max(-1, Math.min(1, dot(pose.turn[2], about.up))));
    const pitch = Math.max(-1.5 - tilt, Math.min(1.5 - tilt, -0.006 * dy));
    set(turned(turned(pose, pose.turn[0], pitch, middle), about.up, -0.006 * dx, middle));
  };
  const shift = (dx, dy) => {
    const [w, h] = pixels(), {focal} = lensOn(pose.lens, w, h);
    set({...pose, eye: add(add(pose.eye, pose.turn[0], -dx * depth / focal[0]), pose.turn[1], -dy * depth / focal[1])});
  };
  const nearer = factor => {
    const step = Math.max(depth, 0.1 * about.unit) * (1 - 1 / factor);
    depth = Math.max(depth - step, 0.02 * about.unit);
    set({...pose, eye: add(pose.eye, pose.turn[2], step)});
  };
  const spread = () => { const [a, b] = [...fingers.values()]; return {x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2, gap: Math.hypot(a[0] - b[0], a[1] - b[1])}; };
  marks.addEventListener("pointerdown", event => {
    marks.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    [moving, travelled, depth] = [null, fingers.size > 1 ? 99 : 0, distance()];
    document.body.classList.add("used");
  });
  marks.addEventListener("pointermove", event => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const two = fingers.size === 2 ? spread() : null, [dx, dy] = [event.offsetX - before[0], event.offsetY - before[1]];
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    travelled += Math.hypot(dx, dy);
    if (two) {
      const now = spread();
      shift(now.x - two.x, now.y - two.y);
      if (two.gap > 20) nearer(now.gap / two.gap);
    } else if (fingers.size === 1 && travelled > 4) (event.buttons & 2 || event.shiftKey ? shift : orbit)(dx, dy);
  });
  const lift = event => {
    if (fingers.delete(event.pointerId) && event.type === "pointerup" && travelled < 6) tap(event.offsetX, event.offsetY);
  };
  marks.addEventListener("pointerup", lift);
  marks.addEventListener("pointercancel", lift);
  marks.addEventListener("contextmenu", event => event.preventDefault());
  marks.addEventListener("wheel", event => {
    event.preventDefault();
    depth = distance();
    moving = null;
    nearer(Math.exp(-0.0012 * event.deltaY * (event.deltaMode ? 30 : 1)));
  }, {passive: false});
  function tap(x, y) {
    const places = [...cameras, ...frames].map(camera => [camera, project(add(camera.eye, camera.turn[2], 0.1 * about.unit))]);
    const close = places.filter(([camera, place]) => place && Math.hypot(place[0] - x, place[1] - y) < 24
      && Math.hypot(...add(camera.eye, pose.eye, -1)) > 0.01 * about.unit);
    close.sort(([, a], [, b]) => Math.hypot(a[0] - x, a[1] - y) - Math.hypot(b[0] - x, b[1] - y));
    if (close.length) go(close[0][0]);
  }
  const FLY = {KeyW: [2, 1], KeyS: [2, -1], KeyD: [0, 1], KeyA: [0, -1], KeyE: [1, -1], KeyQ: [1, 1]};
  const LOOK = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 1], ArrowDown: [1, -1]};
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input")) return;
    if (FLY[event.code] || LOOK[event.code]) { held.add(event.code); moving = null; event.preventDefault(); }
    if (event.code === "KeyK") keep();
  });
  addEventListener("keyup", event => held.delete(event.code));
  addEventListener("blur", () => held.clear());
  function fly(seconds) {
    for (const code of held) {
      if (FLY[code]) set({...pose, eye: add(pose.eye, pose.turn[FLY[code][0]], FLY[code][1] * seconds * about.unit)});
      else set(turned(pose, LOOK[code][0] ? pose.turn[0] : about.up, -LOOK[code][1] * seconds * (LOOK[code][0] ? -0.8 : 0.8), pose.eye));
    }
  }

  // Photos and paths.
  cameras.forEach((camera, i) => {
    const button = document.createElement("button"), image = document.createElement("img");
    Object.assign(image, {src: camera.photo ?? "", alt: camera.name, draggable: false});
    button.append(image);
    button.title = `to the camera of ${camera.name}`;
    button.addEventListener("click", () => go(cameras[i]));
    $("photos").append(button);
  });
  function told() {
    $("count").textContent = `${frames.length} ${frames.length === 1 ? "keyframe" : "keyframes"}`;
    for (const id of ["play", "save", "clear"]) $(id).disabled = frames.length < (id === "play" ? 2 : 1);
    dirty = true;
  }
  function keep() {
    frames.push(moving?.to ?? pose);  // on the way to a camera, that camera
    $("seconds").value = Math.max(2, 2 * (frames.length - 1));
    told();
  }
  const download = (url, name) => Object.assign(document.createElement("a"), {href: url, download: name}).click();
  $("keep").addEventListener("click", keep);
  $("play").addEventListener("click", play);
  $("clear").addEventListener("click", () => { frames.length = 0; told(); });
  $("save").addEventListener("click", () => {
    const text = JSON.stringify(pathFile(frames, Math.max(0.1, +$("seconds").value || 2)), null, 1);
    download(URL.createObjectURL(new Blob([text], {type: "application/json"})), "camera_path.json");
  });
  $("shot").addEventListener("click", () => download(picture(pose, canvas.width, canvas.height), "picture.png"));
  $("show").addEventListener("change", () => { dirty = true; });
  $("wipe").addEventListener("input", placeWipe);
  told();

  let last = performance.now();
  function tick(now) {
    if (held.size) fly(Math.min(0.1, (now - last) / 1000));
    last = now;
    if (moving) {
      // A frame's time is that of its beginning, which a slow device may have had before the click.
      const share = Math.max(0, Math.min(1, (now - moving.start) / 1000 / moving.seconds));
      const next = moving.path(share);
      if (share >= 1) moving = null;
      set(next);
    }
    const ratio = Math.min(devicePixelRatio, 2), [w, h] = pixels().map(side => Math.max(1, Math.round(ratio * side)));
    if (canvas.width !== w || canvas.height !== h) { [canvas.width, canvas.height] = [w, h]; dirty = true; }
    if (dirty) {
      dirty = false;
      sort();
      draw(pose, sorted);
      drawMarks();
      showPhoto();
    }
    requestAnimationFrame(tick);
  }
  sorted = order(splats.places, pose.eye, pose.turn[2], NEAR);
  requestAnimationFrame(tick);
  $("wait").hidden = true;
  set(pose);  // a page beside this one follows
  return {cameras, frames, picture, go, keep, adopt, relative, pathFile: seconds => pathFile(frames, seconds), pose: () => pose, set};
}

window.reconx = start();
window.reconx.catch(error => { $("wait").textContent = error.message; $("wait").classList.add("wrong"); });
