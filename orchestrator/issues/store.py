"""Where issues are: a JSON export on disk, or GitHub. Both list them, and take one action at a time."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from orchestrator.errors import ForgeError, InputError, Problem
from orchestrator.issues.issue import Issue, from_json

REPO = re.compile(r"^[A-Za-z0-9][\w.-]{0,99}/[\w.-]{1,100}$")
URL = re.compile(r"github\.com/(?:repos/)?([\w.-]+/[\w.-]+)/issues/")
MAX_EXPORT_BYTES = 200 << 20
PER_PAGE = 100
MAX_PAGES = 200
TIMEOUT_S = 20
API = "https://api.github.com"
FIXES = {
    401: "the token was refused: set GITHUB_TOKEN to one that is valid",
    403: "not allowed, or too many requests: give GITHUB_TOKEN the right to issues, or wait an hour",
    404: "no such repository, or the token may not see it: check the name, or set GITHUB_TOKEN",
    410: "issues are switched off there",
    422: "GitHub took the request for wrong; its words are above",
    429: "too many requests: wait, then give the same command again, which goes on where it was",
}


class Store(Protocol):
    repo: str  # owner/name

    def issues(self) -> list[Issue]: ...

    def create(self, fields: Mapping[str, Any]) -> int:
        """The new issue's number; it is open."""
        ...

    def update(self, number: int, fields: Mapping[str, Any]) -> None: ...


def opened(place: str, env: Mapping[str, str] = os.environ) -> Store:
    """`owner/repo` on GitHub, or the path of a JSON export."""
    if place.endswith(".json"):
        return Export(Path(place))
    if not REPO.match(place):
        raise InputError(f"{place}: neither `owner/repo` nor a `.json` file")
    return GitHub(place, env)


class Export:
    """A file as `gh issue list --json ...` or the API's list gives it; `{"repository": ..., "issues": [...]}` too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = _loaded(path)
        self._entries: list[Any] = self._content["issues"]
        self.repo = str(self._content.get("repository") or _repo_of(self._entries) or f"export/{_word(path.stem)}")
        if not REPO.match(self.repo):
            fix = 'name it as in {"repository": "owner/repo", "issues": [...]}'
            raise InputError([Problem(str(path), 0, f"repository `{self.repo[:80]}` is no `owner/repo`", fix)])

    def issues(self) -> list[Issue]:
        found = [from_json(str(self._path), at, raw) for at, raw in enumerate(self._entries)]
        return [issue for issue in found if issue]

    def create(self, fields: Mapping[str, Any]) -> int:
        number = max((issue.number for issue in self.issues()), default=0) + 1
        self._entries.append(
            {"number": number, "labels": [], "milestone": None, **fields, "author_association": "OWNER"}
        )
        self._save()
        return number

    def update(self, number: int, fields: Mapping[str, Any]) -> None:
        next(entry for entry in self._entries if entry["number"] == number).update(fields)
        self._save()

    def _save(self) -> None:
        """All of it or nothing."""
        self._content["repository"] = self.repo
        fresh = self._path.with_name(f".{self._path.name}.new")
        fresh.write_text(json.dumps(self._content, indent=2) + "\n")
        fresh.replace(self._path)


class GitHub:
    """Issues over the REST API. Reads are repeated after a passing fault; writes never, or they might happen twice."""

    def __init__(self, repo: str, env: Mapping[str, str], write_pause_s: float = 1.0) -> None:
        from github import Auth, Github
        from urllib3.util.retry import Retry

        base, token = env.get("GITHUB_API_URL") or API, env.get("GITHUB_TOKEN") or env.get("GH_TOKEN")
        if token and urlparse(base).scheme != "https" and urlparse(base).hostname not in ("127.0.0.1", "localhost"):
            raise InputError(f"GITHUB_API_URL={base}: a token is sent over https only")
        self.repo = repo
        self._github = Github(
            auth=Auth.Token(token) if token else None,
            base_url=base.rstrip("/"),
            timeout=TIMEOUT_S,
            retry=Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504), allowed_methods=["GET"]),
            seconds_between_requests=0,
            seconds_between_writes=write_pause_s,  # GitHub asks for one a second
        )

    def issues(self) -> list[Issue]:
        """All of them, open and closed; pull requests, which the same list holds, left out. One request a hundred."""
        found: list[Issue] = []
        for page in range(1, MAX_PAGES + 1):
            asked = {"state": "all", "sort": "created", "direction": "asc", "per_page": PER_PAGE, "page": page}
            entries = self._ask("GET", f"/repos/{self.repo}/issues", parameters=asked)
            if not isinstance(entries, list):
                raise ForgeError(f"{self.repo}: the answer is no list of issues; is GITHUB_API_URL GitHub's?")
            issues = (from_json(self.repo, at, raw) for at, raw in enumerate(entries))
            found += [issue for issue in issues if issue]
            if len(entries) < PER_PAGE:
                return found
        raise ForgeError(
            f"{self.repo} has over {MAX_PAGES * PER_PAGE} issues; export them to a file and take what matters"
        )

    def create(self, fields: Mapping[str, Any]) -> int:
        first = {key: fields[key] for key in ("title", "body")}
        return int(self._ask("POST", f"/repos/{self.repo}/issues", input=first)["number"])

    def update(self, number: int, fields: Mapping[str, Any]) -> None:
        self._ask("PATCH", f"/repos/{self.repo}/issues/{number}", input=dict(fields))

    def _ask(self, verb: str, path: str, **more: Any) -> Any:
        # The requester itself: PyGithub's objects ask again for each field that an answer lacks, one request an issue.
        return _with_words(self.repo, lambda: self._github.requester.requestJsonAndCheck(verb, path, **more)[1])


def _with_words(repo: str, ask: Callable[[], Any]) -> Any:
    from github import GithubException
    from requests import RequestException

    try:
        return ask()
    except GithubException as error:
        said = error.data.get("message") if isinstance(error.data, dict) else error.data
        fix = FIXES.get(error.status, "GitHub has a fault: give the same command again later")
        raise ForgeError(f"{repo}: GitHub said {error.status}: {str(said)[:200]}; {fix}") from error
    except RequestException as error:
        fix = "check the network, then give the same command again"
        raise ForgeError(f"{repo}: GitHub can't be reached ({type(error).__name__}); {fix}") from error


def _loaded(path: Path) -> dict[str, Any]:
    """The export's content; an empty one where there is no file yet."""
    try:
        if path.stat().st_size > MAX_EXPORT_BYTES:
            raise InputError([Problem(str(path), 0, f"is larger than {MAX_EXPORT_BYTES} bytes", "export less")])
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {"issues": []}
    except OSError as error:
        raise InputError([Problem(str(path), 0, f"can't be read ({error.strerror})", "check the path")]) from error
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 0)
        raise InputError([Problem(str(path), line, f"is no JSON: {error}"[:200], "export it again")]) from error
    content = {"issues": content} if isinstance(content, list) else content
    if not isinstance(content, dict) or not isinstance(content.get("issues"), list):
        raise InputError([Problem(str(path), 0, "holds no list of issues", "see `gh issue list --help`")])
    return content


def _repo_of(entries: list[Any]) -> str:
    """The repository that the entries' addresses name, where they name one."""
    addresses = [str(e.get(key, "")) for e in entries if isinstance(e, dict) for key in ("html_url", "url")]
    return next((match[1] for address in addresses if (match := URL.search(address))), "")


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)[:80] or "issues"
