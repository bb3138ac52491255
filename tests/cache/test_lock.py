"""The store's lock, also on file systems that have none."""

import errno
import fcntl
import os

import pytest

from reconx_core.cache.lock import exclusive, in_use
from reconx_core.errors import UserError

NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@pytest.fixture(params=NO_LOCKS)
def no_locks(request, monkeypatch):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def nfs(monkeypatch):
    """NFS has byte-range locks for flock: a shared one needs a file that can be read, an exclusive one that can be written."""
    flock, needed = fcntl.flock, {fcntl.LOCK_SH: (os.O_RDONLY, os.O_RDWR), fcntl.LOCK_EX: (os.O_WRONLY, os.O_RDWR)}

    def byte_range(file, mode):
        access = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if access not in needed[mode & ~fcntl.LOCK_NB]:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, mode)

    monkeypatch.setattr(fcntl, "flock", byte_range)


def test_runs_share_the_store_and_keep_garbage_collection_out(tmp_path):
    with in_use(tmp_path), in_use(tmp_path), pytest.raises(UserError, match="wait until it has ended"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


@pytest.mark.usefixtures("nfs")
@pytest.mark.filterwarnings("error")
def test_nfs_takes_both_locks(tmp_path):
    with in_use(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_run_goes_on_and_garbage_stays(tmp_path):
    with pytest.warns(UserWarning, match="has no locks"), in_use(tmp_path):
        pass
    with pytest.raises(UserError, match="has no locks"), exclusive(tmp_path):
        pass


def test_store_that_is_no_folder_is_a_sentence(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(UserError, match="there is a file where a folder is needed"), exclusive(tmp_path / "store"):
        pass
