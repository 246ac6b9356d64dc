"""What is played against both, a line a step, in scenarios that leave nothing behind.

    network ls                      the docker CLI's command line; `<< text`: its standard input
    poll PATTERN :: service ls      ... asked until its output matches; not compared
    GET /v1.24/nodes                a request; the rest of the line is its body
    py: api.services()              a call of docker-py's: `client` is a DockerClient, `api` its APIClient; `name = ...` keeps the result

`{image}`, `{node}` (the hostname), `{address}`, `{nowhere}` (a constraint no node meets), `{id KIND NAME}` (what `docker KIND inspect`
calls it), `{prefix KIND NAME}` (that id's beginning) and `{version KINDS NAME}` (its version's index) are filled in per side.
"""

from __future__ import annotations

SCENARIOS: dict[str, str] = {
    "no cluster": """
        version --format {{.Server.Os}}/{{.Server.Arch}}
        info --format '{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}} {{.Swarm.NodeID}} {{.OSType}}'
        info --format '{{json .Swarm}}'
        node ls
        node inspect self
        node ps
        service ls
        service ps web
        service create -d --no-resolve-image --name web {image}
        service inspect web
        service update -d --replicas 2 web
        service scale -d web=2
        service rm web
        service rollback -d web
        service logs web
        network ls --filter driver=overlay
        network create -d overlay ov
        network inspect ov
        secret ls
        secret create s - << x
        secret inspect s
        secret rm s
        config ls
        config create c - << x
        stack ls
        stack services st
        swarm join-token worker
        swarm update --task-history-limit 3
        swarm unlock-key
        swarm unlock << SWMKEY-1-nothing
        swarm ca
        swarm leave
        swarm join --token SWMTKN-1-bad-bad 127.0.0.1:1
        swarm init --advertise-addr no-suchdevice
        swarm init --advertise-addr {address} --availability sometimes
        swarm init --advertise-addr {address} --cert-expiry 10m
        swarm leave --force
        poll ^inactive$ :: info --format {{.Swarm.LocalNodeState}}
        swarm init --advertise-addr {address} --data-path-port 80
        swarm init --advertise-addr {address} --default-addr-pool 10.300.0.0/16
        swarm init --advertise-addr {address} --default-addr-pool 10.20.0.0/16 --default-addr-pool-mask-length 8
        swarm init --advertise-addr {address} --dispatcher-heartbeat=-1s
        swarm leave --force
        poll ^inactive$ :: info --format {{.Swarm.LocalNodeState}}
        swarm init --advertise-addr {address}:noport
        swarm leave --force
        poll ^inactive$ :: info --format {{.Swarm.LocalNodeState}}
        swarm init --advertise-addr 203.0.113.77
        swarm leave --force
        poll ^inactive$ :: info --format {{.Swarm.LocalNodeState}}
        swarm init --advertise-addr 0.0.0.0
        swarm init --advertise-addr {address} --listen-addr nonsense
        swarm init --advertise-addr {address} --data-path-addr nonsense
        swarm leave --force
        poll ^inactive$ :: info --format {{.Swarm.LocalNodeState}}
        swarm init --advertise-addr {address} --task-history-limit=-1 --max-snapshots=3
        swarm leave --force
        poll ^inactive$ :: info --format {{.Swarm.LocalNodeState}}
    """,
    "a cluster of one": """
        swarm init --advertise-addr {address}
        swarm init --advertise-addr {address}
        swarm join --token SWMTKN-1-bad-bad {address}:2377
        swarm join-token worker
        swarm join-token -q worker
        swarm join-token manager
        swarm join-token --rotate -q worker
        swarm join-token nonsense
        swarm ca
        swarm unlock-key
        swarm unlock << SWMKEY-1-nothing
        swarm update --task-history-limit 3 --dispatcher-heartbeat 6s
        swarm update --task-history-limit=-1
        swarm update --dispatcher-heartbeat=-1s
        swarm update --cert-expiry 1m
        swarm update --cert-expiry 2h --max-snapshots 1 --snapshot-interval 5000
        info --format '{{json .Swarm}}'
        swarm update --cert-expiry 2160h --max-snapshots 0 --snapshot-interval 10000
        info --format '{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}} {{.Swarm.Nodes}} {{.Swarm.Managers}} {{.Swarm.NodeAddr}}'
        swarm leave
    """,
    "nodes": """
        node ls
        node ls -q
        node ls --format '{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}} {{.Self}} {{.TLSStatus}}'
        node ls --filter role=manager --format {{.Hostname}}
        node ls --filter role=worker --format {{.Hostname}}
        node ls --filter name=node --format {{.Hostname}}
        node ls --filter name=ode --format {{.Hostname}}
        node ls --filter id={id node self} --format {{.Hostname}}
        node ls --filter membership=accepted --format {{.Hostname}}
        node ls --filter membership=pending --format {{.Hostname}}
        node ls --filter membership=nonsense
        node ls --filter role=nonsense
        node ls --filter bogus=x
        node ls --filter node.label=disk
        node inspect self
        node inspect --pretty self
        node inspect {node}
        node inspect {prefix node self} --format {{.Spec.Role}}
        node inspect no-such
        node inspect --pretty no-such
        node inspect self no-such --format {{.Spec.Availability}}
        node update --label-add disk=ssd --label-add rack=r1 {node}
        node update --label-add disk=hdd {node}
        node inspect {node} --format '{{json .Spec}}'
        node ls --filter node.label=disk --format {{.Hostname}}
        node ls --filter node.label=disk=ssd --format {{.Hostname}}
        node ls --filter node.label=disk=hdd --format {{.Hostname}}
        node ls --filter label=disk --format {{.Hostname}}
        node update --label-rm disk --label-rm rack {node}
        node update --label-rm no-such {node}
        node inspect {node} --format '{{json .Spec}}'
        node update --availability drain {node}
        node ls --format '{{.Hostname}} {{.Availability}}'
        node update --availability pause {node}
        node update --availability nonsense {node}
        node update --availability active {node}
        node update --role worker {node}
        node update --role nonsense {node}
        node update --availability active no-such
        node demote {node}
        node promote {node}
        node promote no-such
        node rm {node}
        node rm --force {node}
        node rm no-such
        node ps
        node ps self
        node ps {node}
        node ps no-such
        node ps --filter bogus=1
        node ps --filter desired-state=nonsense
        inspect --type node self
        inspect --type node no-such
    """,
    "networks": """
        network create -d overlay --subnet 10.55.0.0/24 --label a=b --label c ov1
        network create -d overlay ov1
        network create -d overlay --subnet 10.55.0.128/25 over-lap
        network rm over-lap
        network create -d overlay --subnet 10.56.0.0/24 --gateway 10.56.0.9 --ip-range 10.56.0.64/26 --attachable ov2
        network create -d overlay --internal --opt com.docker.network.driver.mtu=1300 ov3
        network create -d overlay --subnet 10.57.0.0/24 --gateway 10.58.0.1 bad
        network create -d overlay --subnet 10.57.0.0/24 --ip-range 10.58.0.0/26 bad
        network create -d overlay --subnet 10.57.0.0/99 bad
        network create -d overlay --subnet nonsense bad
        network create -d overlay --subnet 10.57.0.0/24 --subnet 10.57.0.0/25 bad
        network create -d overlay --gateway 10.57.0.1 bad
        network create -d overlay --subnet 10.57.0.0/24 --aux-address x=10.57.0.8 ov4
        network create -d overlay --scope local bad
        network create --scope swarm -d macvlan m-v
        network rm m-v
        network create --scope nonsense -d overlay o-d
        network rm o-d
        network create -d overlay host
        network create -d overlay bridge
        network create -d overlay ''
        network create -d overlay ' '
        network create -d overlay a/b
        network create -d overlay -- -bad
        network create -d overlay --ingress second
        network create -d overlay --config-only c-o
        network create -d overlay --config-from no-such c-f
        network rm c-f
        network ls --filter scope=swarm --format '{{.Name}} {{.Driver}} {{.Scope}} {{.Internal}} {{.IPv6}} {{.Label "a"}}'
        network ls --filter driver=overlay --filter name=ov1
        network ls --filter name=ov --format {{.Name}}
        network ls --filter name=v2 --format {{.Name}}
        network ls --filter id={id network ov1} --format {{.Name}}
        network ls --filter label=a --format {{.Name}}
        network ls --filter label=a=b --format {{.Name}}
        network ls --filter label=a=x --format {{.Name}}
        network ls --filter type=custom --filter scope=swarm --format {{.Name}}
        network ls --filter type=builtin --filter scope=swarm --format {{.Name}}
        network ls --filter type=nonsense
        network ls --filter scope=global
        network ls --filter scope=nonsense
        network ls --filter dangling=true --filter scope=swarm --format {{.Name}}
        network ls --filter dangling=nonsense
        network ls --filter bogus=x
        network ls --no-trunc --filter scope=swarm --format {{.ID}}
        network inspect ov1
        network inspect -v ov1
        network inspect ov2
        network inspect ov3
        network inspect ov4
        network inspect ingress
        network inspect {id network ov1} --format {{.Name}}
        network inspect {prefix network ov1} --format {{.Name}}
        network inspect no-such
        network inspect ov1 no-such --format {{.Name}}
        network connect no-such no-such
        network rm no-such
        network rm ov1 no-such ov3
        network rm host
        network rm ov2 ov4 c-o
        network create -d overlay --label prune=me pr1
        network prune -f --filter label=prune=nobody
        network prune -f --filter label=prune
        network prune -f --filter bogus=x
        network rm pr1
        inspect --type network no-such
    """,
    "secrets and configs": """
        secret create --label a=b s1 - << hush
        secret create s1 - << hush
        secret create s2 - << hush
        secret create empty - <<
        secret create 'bad name' - << x
        secret create -bad - << x
        secret create ends- - << x
        secret create aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa - << x
        secret create --template-driver no-such s-t - << x
        secret rm s-t
        secret ls
        secret ls --format '{{.Name}} {{.Labels}} {{.Driver}}'
        secret ls --filter name=s --format {{.Name}}
        secret ls --filter name=1 --format {{.Name}}
        secret ls --filter label=a --format {{.Name}}
        secret ls --filter label=a=c --format {{.Name}}
        secret ls --filter id={id secret s1} --format {{.Name}}
        secret ls --filter id={prefix secret s1} --format {{.Name}}
        secret ls --filter bogus=x
        secret ls -q
        secret inspect s1
        secret inspect --pretty s1
        secret inspect {prefix secret s1} --format {{.Spec.Name}}
        secret inspect no-such
        secret inspect s1 no-such --format {{.Spec.Name}}
        secret rm no-such
        secret rm s1 no-such s2
        inspect --type secret no-such
        config create --label a=b c1 - << content
        config create c1 - << content
        config create c2 - << other
        config create empty - <<
        config create 'bad name' - << x
        config create --template-driver no-such c-t - << x
        config rm c-t
        config create --template-driver golang tpl - << '{{ .Service.Name }}'
        config ls
        config ls --format '{{.Name}} {{.Labels}}'
        config ls --filter name=c --format {{.Name}}
        config ls --filter label=a=b --format {{.Name}}
        config ls --filter id={id config c1} --format {{.Name}}
        config ls --filter bogus=x
        config inspect c1
        config inspect tpl
        config inspect --pretty c1
        config inspect {prefix config c1} --format {{.Spec.Name}}
        config inspect no-such
        config rm no-such
        config rm c1 c2 tpl
        inspect --type config no-such
    """,
    "services of no replicas": """
        network create -d overlay --subnet 10.65.0.0/24 ov1
        secret create s1 - << hush
        config create c1 - << content
        service create -d --no-resolve-image --name web --replicas 0 {image}
        service inspect web
        service inspect --pretty web
        service ls
        service create -d --no-resolve-image --name web --replicas 0 {image}
        service create -d --no-resolve-image --name big --replicas 0 --network ov1 -p 8080:80 --config c1 --secret s1 \
            --constraint node.platform.os==linux --limit-cpu 0.5 --limit-memory 64M --reserve-cpu 0.1 --reserve-memory 8M --env A=B \
            --label l1=v1 --container-label cl=cv --mount type=volume,source=vol,target=/data \
            --mount type=tmpfs,target=/t,tmpfs-size=1000000,tmpfs-mode=0700 --mount type=bind,source=/tmp,target=/x,readonly \
            --update-parallelism 2 --update-delay 3s --update-order start-first --update-failure-action rollback --update-monitor 7s \
            --update-max-failure-ratio 0.3 --rollback-parallelism 3 --rollback-monitor 9s --restart-condition on-failure \
            --restart-delay 2s --restart-max-attempts 4 --restart-window 20s --stop-grace-period 4s --stop-signal SIGINT \
            --user nobody --workdir /tmp --hostname h --tty --read-only --init --dns 8.8.8.8 --dns-search example.com \
            --dns-option ndots:2 --host db:10.1.1.1 --health-cmd true --health-interval 5s --health-retries 2 --health-timeout 3s \
            --health-start-period 1s --log-driver json-file --log-opt max-size=1m --entrypoint /bin/sh --group nogroup \
            --cap-add NET_ADMIN --cap-drop MKNOD --sysctl net.core.somaxconn=100 --ulimit nofile=100:200 --limit-pids 50 \
            --placement-pref spread=node.labels.rack --replicas-max-per-node 3 --isolation default {image} -c 'sleep 9'
        poll 10.65 :: service inspect --format '{{json .Endpoint.VirtualIPs}}' big
        service inspect big
        service inspect --pretty big
        service create -d --no-resolve-image --name glob --mode global --constraint {nowhere} --endpoint-mode dnsrr \
            --network ov1 {image}
        service inspect glob
        service inspect --pretty glob
        service create -d --no-resolve-image --name hostp --replicas 0 --publish mode=host,target=80,published=8081 \
            --publish published=8082,target=53,protocol=udp {image}
        poll 8082 :: service inspect --format '{{json .Endpoint.Ports}}' hostp
        service inspect hostp
        service inspect --pretty hostp
        service create -d --no-resolve-image --name job --mode replicated-job --replicas 3 --max-concurrent 1 \
            --constraint {nowhere} {image} true
        service inspect job
        service inspect --pretty job
        service create -d --no-resolve-image --name gjob --mode global-job --constraint {nowhere} {image} true
        service inspect gjob
        service ls
        service ls --format '{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}'
        service ls -q --filter name=web
        service ls --filter name=w --format {{.Name}}
        service ls --filter name=eb --format {{.Name}}
        service ls --filter id={id service web} --format {{.Name}}
        service ls --filter id={prefix service web} --format {{.Name}}
        service ls --filter mode=global --format {{.Name}}
        service ls --filter mode=replicated --format {{.Name}}
        service ls --filter mode=replicated-job --format {{.Name}}
        service ls --filter mode=global-job --format {{.Name}}
        service ls --filter mode=nonsense --format {{.Name}}
        service ls --filter label=l1 --format {{.Name}}
        service ls --filter label=l1=v1 --format {{.Name}}
        service ls --filter label=l1=v2 --format {{.Name}}
        service ls --filter runtime=container --filter name=web --format {{.Name}}
        service ls --filter bogus=x
        service inspect {id service web} --format {{.Spec.Name}}
        service inspect {prefix service web} --format {{.Spec.Name}}
        service inspect no-such
        service inspect --pretty no-such
        service inspect web no-such --format {{.Spec.Name}}
        service ps web
        service ps no-such
        service ps web no-such
        service ps --filter bogus=x web
        service ps --filter desired-state=nonsense web
        service logs no-such
        inspect --type service web --format {{.Spec.Name}}
        inspect web --format {{.Spec.Name}}
        inspect no-such
        inspect --type task no-such
        network inspect ov1
        network inspect -v ov1
        network rm ov1
        secret rm s1
        config rm c1
        service update -d --no-resolve-image --env-add X=Y --label-add new=1 web
        service inspect web
        service update -d --rollback web
        poll rollback_completed :: service inspect web --format {{.UpdateStatus.State}}
        service inspect web
        service update -d --rollback glob
        service rollback -d hostp
        service update -d --image {image2} --no-resolve-image web
        service inspect --format '{{json .UpdateStatus}}' web
        service update -d --publish-add 8090:80 web
        service update -d --publish-add 8080:80 web
        service update -d --publish-rm 80 web
        service update -d --network-add ov1 web
        service update -d --network-rm ov1 web
        service update -d --network-add no-such web
        service update -d --secret-add s1 --config-add source=c1,target=/etc/c web
        service update -d --secret-add no-such web
        service update -d --config-add no-such web
        service update -d --secret-rm s1 --config-rm c1 web
        service update -d --constraint-add node.role==manager --constraint-rm nothing web
        service update -d --constraint-add bogus web
        service update -d --constraint-add 'node.role=~x' web
        service update -d --limit-cpu 0.0001 web
        service update -d --limit-memory 1k web
        service update -d --mount-add type=volume,source=v,target=/v web
        service update -d --mount-add type=volume,source=v2,target=/v web
        service update -d --mount-rm /v web
        service update -d --force web
        service update -d --args 'a b' web
        service update -d --entrypoint 'x y' web
        service update -d --hostname other --user 1 --workdir / web
        service update -d --health-cmd false --no-healthcheck web
        service update -d --no-healthcheck web
        service update -d --restart-condition nonsense web
        service update -d --update-order nonsense web
        service update -d --update-failure-action nonsense web
        service update -d --update-max-failure-ratio 2 web
        service update -d --update-parallelism 4 --update-delay 1m web
        service update -d --endpoint-mode dnsrr web
        service update -d --endpoint-mode nonsense web
        service update -d --replicas 2 glob
        service update -d --replicas=-1 web
        service update -d --image '' web
        service update -d --image 'BAD IMAGE' --no-resolve-image web
        service update -d --hosts-add nonsense web
        service update -d --host-add nonsense web
        service update -d --host-add a:1.2.3.4 web
        service update -d --dns-add nonsense web
        service update -d --ulimit-add nofile=1:2 --cap-add ALL --sysctl-add a.b=c web
        service update -d --stop-signal NONSENSE web
        service update -d --restart-delay=-1s web
        service update -d --restart-max-attempts 3 web
        service update -d --replicas-max-per-node 2 web
        service update -d --log-driver no-such web
        service update -d --label-rm new --env-rm X web
        service update -d no-such
        service inspect web
        service create -d --no-resolve-image --name soft --replicas 0 {image}
        service update -d --placement-pref-add spread=nonsense soft
        service update -d --mount-add type=bind,source=relative,target=/r soft
        service update -d --rollback-failure-action rollback soft
        service update -d --image Upper/case --no-resolve-image soft
        service update -d --stop-grace-period=-1s soft
        service update -d --isolation hyperv soft
        service rm soft
        service scale -d web=0 hostp=0
        service scale -d web=x
        service scale -d web
        service scale -d no-such=1
        service scale -d glob=1
        service scale -d job=1
        service create -d --no-resolve-image --name p-2 --replicas 0 -p 8080:80 {image}
        service create -d --no-resolve-image --name p-2 --replicas 0 -p 8082:53/udp {image}
        service create -d --no-resolve-image --name p-2 --replicas 0 -p 8081:80 {image}
        service create -d --no-resolve-image --name p3 --replicas 0 -p 99999:80 {image}
        service create -d --no-resolve-image --name p4 --replicas 0 --endpoint-mode dnsrr -p 8085:80 {image}
        service create -d --no-resolve-image --name p5 --replicas 0 -p 8086:80 -p 8086:81 {image}
        service create -d --no-resolve-image --name 'bad name' {image}
        service create -d --no-resolve-image --name -bad {image}
        service create -d --no-resolve-image --name bad. {image}
        service create -d --no-resolve-image --name aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa {image}
        service create -d --no-resolve-image --name n-1 --replicas 0 --network no-such {image}
        service create -d --no-resolve-image --name n-2 --replicas 0 --network bridge {image}
        service rm n-2
        service create -d --no-resolve-image --name n-3 --replicas 0 --network ingress {image}
        service create -d --no-resolve-image --name n-4 --replicas 0 --secret no-such {image}
        service create -d --no-resolve-image --name n-5 --replicas 0 --config no-such {image}
        service create -d --no-resolve-image --name n-6 --replicas 0 --secret source=s1,target=x --secret source=s1,target=x {image}
        service create -d --no-resolve-image --name n-7 --replicas 0 --mount type=nonsense,target=/x {image}
        service create -d --no-resolve-image --name n-8 --replicas 0 --mount type=volume,source=a,target=/x \
            --mount type=volume,source=b,target=/x {image}
        service create -d --no-resolve-image --name n-9 --replicas 0 --mount type=bind,target=/x {image}
        service rm n-9
        service create -d --no-resolve-image --name n-10 --replicas 0 --mode nonsense {image}
        service create -d --no-resolve-image --name n-11 --constraint {nowhere} --mode global --replicas 3 {image}
        service create -d --no-resolve-image --name n-12 --constraint {nowhere} --mode replicated-job --replicas 0 \
            --update-parallelism 2 {image}
        service create -d --no-resolve-image --name n-13 --constraint {nowhere} --mode global-job --rollback-parallelism 2 {image}
        service create -d --no-resolve-image --name n-14 --constraint {nowhere} --mode replicated-job --restart-condition any {image}
        service create -d --no-resolve-image --name n-15 --replicas 0 --generic-resource gpu=x {image}
        service create -d --no-resolve-image --name n-16 --replicas 0 --reserve-memory 1k {image}
        service create -d --no-resolve-image --name n-17 --replicas 0 --limit-pids=-5 {image}
        service rm n-17
        service create -d --no-resolve-image --name n-18 --replicas 0 --stop-grace-period nonsense {image}
        service create -d --no-resolve-image --name n-19 --replicas 0 --publish mode=nonsense,target=80 {image}
        service create -d --no-resolve-image --name n-20 --replicas 0 --publish published=80,target=80,protocol=nonsense {image}
        service create -d --no-resolve-image --name n-21 --replicas 0 --credential-spec file://x {image}
        service rm n-21
        service create -d --no-resolve-image --name auto --replicas 0 --publish 80 {image}
        poll 30000 :: service inspect auto --format '{{range .Endpoint.Ports}}{{.PublishedPort}}{{end}}'
        service inspect auto --format '{{json .Endpoint.Ports}} {{json .Spec.EndpointSpec}}'
        service rm auto p-2
        service rm web big no-such glob
        service rm hostp job gjob
        service ls --format {{.Name}}
        service rm n-11 n-12 n-13 n-14 n-15
        poll ^$ :: service ls -q
        network rm ov1
        secret rm s1
        config rm c1
    """,
    "the machine's": """
        version
        info
        system df
        system df --format '{{.Type}} {{.TotalCount}}'
        plugin ls
        plugin inspect no-such
        plugin rm no-such
        image ls --format '{{.Repository}} {{.Tag}} {{.Size}}' {image2}
        GET /info
        image inspect no-such
        volume ls
        volume inspect no-such
        volume create vol1
        volume inspect vol1
        volume rm vol1
        ps -a
        inspect no-such
        logs no-such
        exec no-such true
        rm no-such
        stop no-such
        network rm no-such
        container prune -f
        volume prune -f
        buildx version
        swarm join --token x
    """,
    "tasks": """
        network create -d overlay --subnet 10.65.0.0/24 ov1
        service create -d --no-resolve-image --name run --replicas 2 --network ov1 --restart-delay 200ms {image}
        service create -d --no-resolve-image --name never --constraint {nowhere} {image}
        service create -d --no-resolve-image --name toobig --reserve-memory 900g {image}
        service create -d --no-resolve-image --name everywhere --mode global {image}
        service create -d --no-resolve-image --name done --mode replicated-job --replicas 2 {image} sh -c 'echo out; echo err >&2'
        service create -d --no-resolve-image --name fail --restart-condition none {image} sh -c 'exit 3'
        service create -d --no-resolve-image --name noimage --restart-condition none no-such/image:x
        poll 2/2 :: service ls --filter name=run --format {{.Replicas}}
        poll 1/1 :: service ls --filter name=everywhere --format {{.Replicas}}
        poll 2/2.completed :: service ls --filter name=done --format {{.Replicas}}
        poll Failed :: service ps fail --format {{.CurrentState}}
        poll Rejected :: service ps noimage --format {{.CurrentState}}
        poll Pending :: service ps toobig --format {{.CurrentState}}
        service ls
        service ps run
        service ps --no-trunc run
        service ps -q run
        service ps --no-resolve run
        service ps --format '{{.Name}} {{.Image}} {{.Node}} {{.DesiredState}} {{.CurrentState}} {{.Error}} {{.Ports}}' run
        service ps --filter desired-state=running --format {{.Name}} run
        service ps --filter desired-state=shutdown --format {{.Name}} run
        service ps --filter name=run.1 --format {{.Name}} run
        service ps --filter node={node} --format {{.Name}} run
        service ps --filter node=no-such run
        service ps never
        service ps toobig --no-trunc
        service ps everywhere
        service ps done
        service ps fail --no-trunc
        service ps noimage --no-trunc --format '{{.Name}} {{.DesiredState}}'
        node ps --format '{{.Name}} {{.DesiredState}}'
        node ps --filter name=run --format {{.Name}}
        network inspect ov1
        network rm ov1
        service inspect run
        service inspect done
        service logs done --raw
        service logs --tail 0 run
        service logs --tail nonsense run
        ps --format '{{.Image}}' --filter label=com.docker.swarm.service.name=run
        ps -a --filter label=com.docker.swarm.service.name=fail --format '{{.Status}} {{.Command}}'
        service scale -d run=1
        poll 1/1 :: service ls --filter name=run --format {{.Replicas}}
        poll ^1$ :: network inspect -v ov1 --format '{{len (index .Services "run").Tasks}}'
        network inspect -v ov1
        service update -d --no-resolve-image --image {image2} --update-monitor 1s run
        poll completed :: service inspect run --format {{.UpdateStatus.State}}
        service inspect run --format '{{json .UpdateStatus}}'
        service inspect run --pretty
        service rollback -d run
        poll rollback_completed :: service inspect run --format {{.UpdateStatus.State}}
        service inspect run --format '{{json .UpdateStatus}}'
        service inspect run --format '{{json .PreviousSpec}}'
        ps -a --filter label=com.docker.swarm.service.name=done --format '{{.Names}}'
        service rm run never toobig everywhere done fail noimage
        poll ^$ :: ps -q --filter label=com.docker.swarm.task
        network rm ov1
    """,
    "stacks": """
        stack deploy -c {stack} --detach=true --resolve-image never st
        poll 8095 :: service inspect --format '{{json .Endpoint.Ports}}' st_web
        stack ls
        stack services st
        stack services --format '{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}}' st
        stack services --filter name=st_web -q st
        stack services --filter bogus=x st
        stack ps st --format {{.Name}}
        stack ps no-such
        stack services no-such
        service inspect st_web
        network inspect st_default
        secret inspect st_s1
        config inspect st_c1
        stack deploy -c {stack} --detach=true --resolve-image never --prune st
        stack deploy -c {stack} --detach=true --resolve-image nonsense st
        stack deploy -c {stack} --detach=true 'bad name'
        stack rm st
        stack rm no-such
        stack ls
    """,
    "events": """
        events --since 1h --until 0s --filter type=service --filter event=nonsense
        events --since 1h --until 0s --filter bogus=x --filter type=nonsense
        network create -d overlay ev-1
        service create -d --no-resolve-image --name ev-1 --replicas 0 {image}
        service update -d --replicas 0 --label-add a=b ev-1
        service scale -d ev-1=0
        secret create ev-1 - << x
        config create ev-1 - << x
        node update --label-add ev-1=1 {node}
        node update --label-rm ev-1 {node}
        service rm ev-1
        secret rm ev-1
        config rm ev-1
        network rm ev-1
        poll remove :: events --since 1h --until 0s --filter type=network --filter network=ev-1 --format {{.Action}}
        poll remove :: events --since 1h --until 0s --filter type=config --filter config=ev-1 --format {{.Action}}
        events --since 1h --until 0s --filter type=service --filter service=ev-1 \
            --format '{{.Type}} {{.Action}} {{json .Actor.Attributes}} {{.Scope}}'
        events --since 1h --until 0s --filter type=secret --filter secret=ev-1 --format '{{.Type}} {{.Action}} {{json .Actor.Attributes}}'
        events --since 1h --until 0s --filter type=config --filter config=ev-1 --format '{{.Type}} {{.Action}} {{json .Actor.Attributes}}'
        events --since 1h --until 0s --filter type=network --filter network=ev-1 --format '{{.Type}} {{.Action}} {{json .Actor.Attributes}}'
        events --since nonsense
        events --since 10s --until 1h
    """,
    "requests": """
        GET /_ping
        HEAD /_ping
        GET /v1.24/_ping
        GET /v9.99/nodes
        GET /v1.0/nodes
        GET /vx/nodes
        GET /no-such
        GET /services/x/y/z
        PUT /services
        POST /services
        DELETE /nodes
        GET /services?filters={"name":{"x":true}}
        GET /services?filters={"name":["x"]}
        GET /services?filters={bad
        GET /services?filters=[]
        GET /services?filters={"name":"x"}
        GET /services?filters={"name":5}
        GET /services?filters={"bogus":["x"]}
        GET /v1.41/services?status=x
        GET /nodes?filters={"bogus":["x"]}
        GET /tasks?filters={"bogus":["x"]}
        GET /tasks?filters={"service":["no-such"]}
        GET /tasks?filters={"node":["no-such"]}
        GET /tasks?filters={"desired-state":["no-such"]}
        GET /tasks?filters={"_up-to-date":["no-such"]}
        GET /secrets?filters={"bogus":["x"]}
        GET /configs?filters={"bogus":["x"]}
        GET /networks?filters={"bogus":["x"]}
        POST /services/create
        POST /services/create {bad
        POST /services/create []
        POST /services/create null
        POST /services/create {}
        POST /services/create {"Name":5}
        POST /services/create {"Name":"x","TaskTemplate":{}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{}}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"},"Runtime":"nonsense"}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}},"Mode":{"Global":{},"Replicated":{}}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"},"ForceUpdate":-1}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"},"RestartPolicy":{"Condition":"nonsense"}}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"},"RestartPolicy":{"Delay":-1}}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}","Mounts":[{"Type":"x","Target":"/x"}]}}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}","Secrets":[{"SecretName":"x"}]}}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}},"UpdateConfig":{"FailureAction":"x"}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}},"UpdateConfig":{"Order":"x"}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}},"UpdateConfig":{"Delay":-1}}
        POST /services/create {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}},"EndpointSpec":{"Mode":"x"}}
"TargetPort":80}]}}
        POST /services/create {"Name":"bare","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}},"Mode":{"Replicated":{"Replicas":0}},\
"Unknown":[{"x":1}],"Labels":null,"Networks":null,"EndpointSpec":null}
        GET /services/bare
        GET /services/bare?insertDefaults=true
        GET /services/bare?insertDefaults=nonsense
        GET /services?status=true
        GET /services?filters={"name":["bare"],"runtime":["container"]}
        POST /services/bare/update {}
        POST /services/bare/update?version= {}
        POST /services/bare/update?version=x {}
        POST /services/bare/update?version=-1 {}
        POST /services/bare/update?version=1 {"Name":"bare","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}}}
        POST /services/bare/update?version=99999999 {"Name":"bare","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}}}
        POST /services/bare/update?version={version services bare}&rollback=nonsense {"Name":"bare",\
"TaskTemplate":{"ContainerSpec":{"Image":"{image}"}}}
        POST /services/bare/update?version={version services bare}&registryAuthFrom=nonsense {"Name":"bare",\
"TaskTemplate":{"ContainerSpec":{"Image":"{image}"}},"Mode":{"Replicated":{"Replicas":0}}}
        POST /services/bare/update?version={version services bare} {"Name":"other","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}},\
"Mode":{"Replicated":{"Replicas":0}}}
        POST /services/bare/update?version={version services bare} {"Name":"bare","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}},\
"Mode":{"Global":{}}}
        POST /services/no-such/update?version=1 {"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"{image}"}}}
        DELETE /services/no-such
        DELETE /services/bare
        POST /v1.40/services/create {"Name":"old","TaskTemplate":{"ContainerSpec":{"Image":"{image}","CapabilityAdd":["X"]},\
"Placement":{"MaxReplicas":1,"Constraints":["node.labels.no==where"]},"Resources":{"Limits":{"Pids":5}}},"Mode":{"ReplicatedJob":{}}}
        GET /v1.40/services/old
        GET /v1.40/services?status=true
        GET /v1.30/services/old
        DELETE /v1.24/services/old
        POST /v1.39/services/create {"Name":"older","TaskTemplate":{"ContainerSpec":{"Image":"{image}","Sysctls":{"a":"b"}},\
"Placement":{"MaxReplicas":1}},"Mode":{"Replicated":{"Replicas":0}}}
        GET /services/older
        DELETE /services/older
        POST /secrets/create {}
        POST /secrets/create {"Name":"x"}
        POST /secrets/create {"Name":"x","Data":"!"}
        POST /secrets/create {"Name":"x","Data":5}
        POST /v1.36/secrets/create {"Name":"x","Data":"eA==","Templating":{"Name":"golang"}}
        POST /v1.36/configs/create {"Name":"x","Data":"eA==","Templating":{"Name":"golang"}}
        POST /configs/create {"Name":"x-1","Data":"eA=="}
        POST /configs/x-1/update {"Name":"x-1"}
        POST /configs/x-1/update?version=1 {"Name":"x-1"}
        POST /configs/x-1/update?version={version configs x-1} {"Name":"y"}
        POST /configs/x-1/update?version={version configs x-1} {"Name":"x-1","Data":"eQ=="}
        POST /configs/x-1/update?version={version configs x-1} {"Name":"x-1","Labels":{"a":"b"}}
        GET /configs/x-1
        DELETE /configs/x-1
        DELETE /configs/x-1
        POST /nodes/{node}/update {}
        POST /nodes/{node}/update?version=1 {"Role":"manager","Availability":"active"}
        POST /nodes/{node}/update?version={version nodes node-1} {"Role":"x","Availability":"active"}
        POST /nodes/{node}/update?version={version nodes node-1} {"Role":"manager","Availability":"x"}
        POST /nodes/no-such/update?version=1 {"Role":"manager","Availability":"active"}
        GET /nodes/{node}
        GET /tasks/no-such
        GET /tasks?filters={"name":["nothing"]}
        GET /services/no-such/logs?stdout=1
        GET /tasks/no-such/logs?stdout=1
        GET /swarm
        POST /swarm/update {}
        POST /swarm/update?version=1 {"Name":"default"}
        POST /swarm/update?version=x {"Name":"default"}
        POST /swarm/init {bad
        POST /swarm/join {bad
        POST /swarm/join {}
        POST /networks/create {bad
        POST /networks/create {"Name":"x","Driver":"overlay","IPAM":{"Config":[{"Subnet":5}]}}
        POST /networks/create {"Name":"x","Driver":"overlay","Labels":null,"IPAM":null,"Options":null}
        GET /networks/x?verbose=nonsense
        GET /networks/x?scope=local
        GET /networks/x?scope=swarm
        DELETE /networks/x
        GET /distribution/no-such.invalid/x/json
        GET /plugins
        GET /plugins/no-such/json
        GET /events?since=x
    """,
    "docker-py": """
        py: client.ping()
        py: api.inspect_swarm()
        py: api.nodes()
        py: api.nodes(filters={"role": "manager"})
        py: api.nodes(filters={"bogus": "x"})
        py: client.nodes.list()[0].attrs["Spec"]
        py: client.nodes.get("no-such")
        py: api.update_node(client.nodes.list()[0].id, 1, {"Role": "manager", "Availability": "active"})
        py: client.nodes.list()[0].update({"Role": "manager", "Availability": "active", "Labels": {"a": "b"}})
        py: client.nodes.list()[0].update({"Role": "manager", "Availability": "active"})
        py: net = client.networks.create("pynet", driver="overlay", attachable=True, labels={"a": "b"})
        py: net.attrs["Name"]
        py: client.networks.create("pynet", driver="overlay", check_duplicate=True)
        py: [n.name for n in client.networks.list(names=["pynet"])]
        py: [n.name for n in client.networks.list(filters={"driver": "overlay", "label": "a=b"})]
        py: client.networks.get("no-such")
        py: secret = client.secrets.create(name="pysecret", data=b"x", labels={"a": "b"})
        py: client.secrets.create(name="pysecret", data=b"x")
        py: [s.name for s in client.secrets.list(filters={"name": "py"})]
        py: client.secrets.get(secret.id).attrs
        py: client.secrets.get("no-such")
        py: config = client.configs.create(name="pyconfig", data=b"x")
        py: client.configs.get(config.id).attrs
        py: client.configs.list(filters={"label": "no-such"})
        py: mode = types.ServiceMode("replicated", replicas=0)
        py: refs = [types.SecretReference(secret.id, "pysecret")]
        py: crefs = [types.ConfigReference(config.id, "pyconfig")]
        py: service = client.services.create("{image}", name="pyweb", mode=mode, networks=["pynet"], secrets=refs, configs=crefs,        \
     env=["A=B"], labels={"l": "v"}, container_labels={"c": "d"}, constraints=["node.role==manager"], mounts=["vol:/data:rw"],           \
  endpoint_spec=types.EndpointSpec(ports={8075: 80}), resources=types.Resources(cpu_limit=100000000, mem_limit=67108864),             \
restart_policy=types.RestartPolicy(condition="on-failure", max_attempts=2),             update_config=types.UpdateConfig(parallelism=2, \
delay=1, failure_action="pause"), user="nobody", workdir="/", hostname="h")
        py: [service.name, service.version > 0]
        poll 8075 :: service inspect --format '{{json .Endpoint.Ports}}' pyweb
        py: client.services.get(service.id).attrs
        py: client.services.get(service.id, insert_defaults=True).attrs["Spec"]["UpdateConfig"]
        py: client.services.create("{image}", name="pyweb")
        py: client.services.create("BAD IMAGE", name="other")
        py: client.services.get("no-such")
        py: [s.name for s in client.services.list(filters={"name": "py"})]
        py: [s.name for s in client.services.list(filters={"mode": "global"})]
        py: client.services.list(filters={"bogus": "x"})
        py: client.services.list(status=True)[0].attrs["ServiceStatus"]
        py: client.services.get("pyweb").update(labels={"new": "label"})
        py: client.services.get("pyweb").attrs["Spec"]["Labels"]
        py: client.services.get("pyweb").scale(0)
        py: client.services.get("pyweb").force_update()
        py: client.services.get("pyweb").attrs["Spec"]["TaskTemplate"]["ForceUpdate"]
        py: api.update_service("pyweb", 1, name="pyweb", task_template={"ContainerSpec": {"Image": "{image}"}})
        py: client.services.get("pyweb").tasks()
        py: api.tasks(filters={"service": "no-such"})
        py: api.inspect_task("no-such")
        py: glob = client.services.create("{image}", name="pyglob", mode="global", constraints=["node.labels.no==where"])
        py: glob.scale(2)
        py: glob.attrs["Spec"]["Mode"]
        py: job = client.services.create("{image}", name="pyjob", mode=types.ServiceMode("replicated-job", concurrency=1, replicas=2),   \
          constraints=["node.labels.no==where"])
        py: job.attrs["Spec"]["Mode"]
        py: service.remove()
        py: glob.remove()
        py: job.remove()
        py: service.reload()
        py: secret.remove()
        py: config.remove()
        poll ^$ :: ps -q --filter label=com.docker.swarm.task
        py: net.remove()
        py: client.swarm.update(task_history_retention_limit=3)
        py: client.swarm.attrs["Spec"]["Orchestration"]
        py: client.swarm.init()
        py: client.swarm.join(["{address}:2377"], "SWMTKN-1-bad-bad")
        py: client.swarm.leave()
        py: client.swarm.get_unlock_key()
        py: api.unlock_swarm("SWMKEY-1-nothing")
    """,
    "the end": """
        swarm leave
        swarm leave --force
        info --format '{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}'
        swarm leave
        node ls
    """,
}
