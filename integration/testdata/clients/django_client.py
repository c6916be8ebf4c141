"""Django 3.2 on psycopg2: its start-up queries, inspectdb, the ORM, server-side cursors."""
import io

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection, models, transaction
from everyday import operation, rows

settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}}, USE_TZ=True, INSTALLED_APPS=[])
django.setup()


class Customer(models.Model):
    name, email, phone = models.TextField(), models.TextField(), models.TextField()

    class Meta:
        app_label, managed, db_table = "shop", False, "customers"


class Order(models.Model):
    customer = models.ForeignKey(Customer, models.DO_NOTHING)
    status = models.TextField()

    class Meta:
        app_label, managed, db_table = "shop", False, "orders"


class Note(models.Model):
    body = models.TextField()

    class Meta:
        app_label, managed, db_table = "shop", False, "notes"


def select():
    return rows(Customer.objects.filter(id=1).values_list("id", "email"))


def parameters():
    return rows(Customer.objects.filter(id=2, name__startswith="Tomas").values_list("id", "email"))


def cursor():
    return rows(list(Customer.objects.order_by("id").values_list("id", "email").iterator(chunk_size=2))[:3])


def batch():
    try:
        with transaction.atomic():
            Note.objects.bulk_create([Note(id=i, body="django") for i in range(6000, 6010)])
            n = Note.objects.filter(body="django").count()
            raise InterruptedError
    except InterruptedError:
        return n


def in_transaction():
    with transaction.atomic():
        try:
            with transaction.atomic(), connection.cursor() as c:
                c.execute("DROP TABLE orders")
        except django.db.Error:
            pass
        return Order.objects.count()


def metadata():
    out = io.StringIO()
    call_command("inspectdb", stdout=out)
    text = out.getvalue()
    order = Order.objects.select_related("customer").get(id=101)
    failed = [line for line in text.splitlines() if line.startswith("# Unable to inspect")]
    return f"{'ForeignKey(Customers' in text} {order.status} {order.customer.email} {failed}"


def refused():
    with connection.cursor() as c:
        c.execute("DROP TABLE orders")


in_transaction.__name__ = "transaction"
for f in (select, parameters, cursor, batch, in_transaction, metadata, refused):
    operation(f.__name__, f)
