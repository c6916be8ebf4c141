# Sourced by scripts/demo and scripts/dev: a sample PostgreSQL in $dir/pg with the shop's data, on $pg_port.
# Expects: $dir (0755), $deputy, $root, pids=(). Leaves $dir/pg-ca.pem and $dir/shop.password.
# shellcheck shell=bash disable=SC2154

pgbin=/usr/lib/postgresql/15/bin
# PostgreSQL wants an account with a name; its package makes one.
pg_uid=$(id -u postgres)

secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
secret_file() { # secret_file PATH SECRET
	(umask 077 && printf '%s' "$2" >"$1")
}
as_pg() { if $root; then setpriv --reuid="$pg_uid" --regid="$pg_uid" --clear-groups -- "$@"; else "$@"; fi; }

free_ports() { # free_ports N: N free loopback ports in a row
	local n=$1 base p ok
	for base in $(shuf -i 20000-30000 -n 50); do
		ok=true
		for ((p = base; p < base + n; p++)); do
			(exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null && ok=false
		done
		$ok && { echo "$base"; return; }
	done
}

start() { # start NAME UID COMMAND...: a process in the background, under that uid when we are root
	local name=$1 uid=$2 caps=-all
	shift 2
	# The issuer reads which program another user's process runs; without this it knows the uid only.
	[ "$name" = issuer ] && caps=+sys_ptrace
	if $root; then
		setpriv --reuid="$uid" --regid="$uid" --clear-groups --inh-caps="$caps" --ambient-caps="$caps" -- "$@" >"$dir/$name.log" 2>&1 &
	else
		"$@" >"$dir/$name.log" 2>&1 &
	fi
	pids+=($!)
}

stop_all() { # in reverse order, by process id
	local i
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill -TERM "${pids[i]}" 2>/dev/null || true; done
	for i in "${pids[@]}"; do wait "$i" 2>/dev/null || true; done
}

start_sample_postgres() {
	mkdir -m 700 "$dir/pg"
	if $root; then chown "$pg_uid:$pg_uid" "$dir/pg"; fi
	local password
	password=$(secret)
	secret_file "$dir/shop.password" "$password"
	as_pg $pgbin/initdb -D "$dir/pg/data" -U postgres --no-sync -E UTF8 --no-locale -A trust >"$dir/initdb.log"
	as_pg "$deputy" sample-certificate --dir "$dir/pg/data" 127.0.0.1
	cp "$dir/pg/data/ca.pem" "$dir/pg-ca.pem"
	chmod 644 "$dir/pg-ca.pem"
	printf 'local all postgres trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n' | as_pg tee "$dir/pg/data/pg_hba.conf" >/dev/null
	start postgresql "$pg_uid" $pgbin/postgres -D "$dir/pg/data" -p "$pg_port" -c listen_addresses=127.0.0.1 \
		-c unix_socket_directories="$dir/pg" -c ssl=on -c ssl_cert_file=server.pem -c ssl_key_file=server.key \
		-c fsync=off -c log_min_messages=fatal
	local i
	for i in $(seq 200); do as_pg $pgbin/pg_isready -q -h "$dir/pg" -p "$pg_port" && break; sleep 0.05; done
	local admin=(as_pg $pgbin/psql -q -h "$dir/pg" -p "$pg_port" -U postgres -v ON_ERROR_STOP=1)
	"${admin[@]}" -c "CREATE ROLE shop_app LOGIN PASSWORD '$password'"
	"${admin[@]}" -c "CREATE DATABASE shop OWNER shop_app"
	{ printf 'GRANT ALL ON SCHEMA public TO shop_app;\nSET ROLE shop_app;\n'; cat examples/demo/shop.sql; } | "${admin[@]}" -d shop
	echo "PostgreSQL $($pgbin/postgres --version | awk '{print $3}') is up. Its password stays with the proxy; no agent ever sees it."
}
