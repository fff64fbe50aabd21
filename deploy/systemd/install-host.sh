# Makes this machine a host of Holdfast: a system user, an environment of its own, a service. Run it as root.
set -eu
getent passwd holdfast >/dev/null || useradd --system --home-dir /var/lib/holdfast --shell /usr/sbin/nologin holdfast
for group in docker video render; do
  if getent group "$$group" >/dev/null; then usermod -aG "$$group" holdfast; fi
done
[ -x /opt/holdfast/bin/pip ] || python3 -m venv /opt/holdfast
/opt/holdfast/bin/pip install --quiet ${package}
install -d -m 0700 /etc/holdfast
install -m 0600 /dev/null /etc/holdfast/host.env
cat >/etc/holdfast/host.env <<'END'
${environment}
END
cat >/etc/systemd/system/holdfast-host.service <<'END'
${unit}
END
systemctl daemon-reload
systemctl enable --now holdfast-host
