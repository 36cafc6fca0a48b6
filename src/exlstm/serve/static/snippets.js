// The request of the page as code.

/** @param {Record<string, unknown>} body @param {string} origin @param {boolean} python */
export function snippet(body, origin, python) {
  if (!python) {
    const data = JSON.stringify(body).replaceAll("'", "'\\''");
    return `curl ${origin}/v1/completions \\\n  -H 'content-type: application/json' \\\n  -d '${data}'`;
  }
  const known = ["prompt", "max_tokens", "temperature", "top_p", "seed", "stop"];
  const own = Object.keys(body).filter((name) => !known.includes(name));
  const literal = (value) => JSON.stringify(value);
  const lines = known.filter((name) => name in body).map((name) => `    ${name}=${literal(body[name])},`);
  const extra = own.map((name) => `${literal(name)}: ${literal(body[name])}`).join(", ");
  return [
    "import openai", "",
    `client = openai.OpenAI(base_url="${origin}/v1", api_key="unused")`,
    "completion = client.completions.create(", '    model="",', ...lines,
    `    extra_body={${extra}},`, ")", "print(completion.choices[0].text)",
  ].join("\n");
}
