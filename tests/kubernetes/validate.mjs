// Validates Kubernetes objects against the schemas of the packages in
// --modules: reads a JSON array of objects, prints a JSON array with the faults
// of each, as strings.
//
// The schemas come as compiled validators, which let unknown fields pass as an
// API server with its defaults would. So each object goes in wrapped, and what
// no validator has looked at is a field that no schema has.

import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {pathToFileURL} from 'node:url';

const modules = process.argv[2].replace(/^--modules=/, '');

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

// The file that holds the validator of a kind.
function schemaFile({apiVersion, kind}) {
  const [version, group = 'core'] = String(apiVersion).split('/').reverse();
  if (group === 'monitoring.coreos.com') {
    return '@kubernetes-models/prometheus-operator/_schemas/' +
        'ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoring' +
        `${capital(version)}${kind}.js`;
  }
  const name = capital(group.split('.')[0]) + capital(version) + kind;
  return `kubernetes-models/_schemas/IoK8sApi${name}.js`;
}

async function loadValidator(object) {
  const file = join(modules, 'node_modules', schemaFile(object));
  return (await import(pathToFileURL(file))).validate;
}

// A view of `value` that notes in `seen` which members were read of what.
function watched(value, seen) {
  if (value === null || typeof value !== 'object') return value;
  const views = new Map();
  const keys = new Set();
  seen.set(value, keys);
  return new Proxy(value, {
    get(target, key) {
      if (!Object.hasOwn(target, key)) return target[key];
      keys.add(String(key));
      if (!views.has(key)) views.set(key, watched(target[key], seen));
      return views.get(key);
    },
  });
}

function unknownFields(value, seen, path = '') {
  if (value === null || typeof value !== 'object') return [];
  const keys = seen.get(value) ?? new Set();
  return Object.entries(value).flatMap(
      ([key, member]) => keys.has(key) ?
          unknownFields(member, seen, `${path}/${key}`) :
          [`${path}/${key}: unknown field`]);
}

async function faultsOf(object) {
  let validate;
  try {
    validate = await loadValidator(object);
  } catch (error) {
    if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
    return [`no schema of ${object.apiVersion} ${object.kind}`];
  }
  const seen = new Map();
  const faults = [];
  if (!validate(watched(object, seen))) {
    for (const {instancePath, keyword, params} of validate.errors) {
      faults.push(`${instancePath}: ${keyword} ${JSON.stringify(params)}`);
    }
  }
  return faults.concat(unknownFields(object, seen));
}

const objects = JSON.parse(readFileSync(0, 'utf8'));
const faults = [];
for (const object of objects) faults.push(await faultsOf(object));
process.stdout.write(JSON.stringify(faults));
